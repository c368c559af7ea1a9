#include "store/cells.h"

#include <algorithm>
#include <functional>

namespace mikv {

namespace {

bool sees(const CellBatch & b, int token, int cell) {
    return !b.mask || b.mask[token * b.mask_stride + cell] != 0xFC00u; // -inf
}

// How many cells the token sees, counting no further than `enough`.
int count_seen(const CellBatch & b, int token, int enough) {
    int n = 0;
    for (int cell = 0; cell < b.n_kv && n < enough; cell++) {
        n += sees(b, token, cell);
    }
    return n;
}

} // namespace

CellTable::CellTable(int n_cells) : born_(n_cells), seen_(n_cells), flags_(n_cells), staged_(n_cells, -1) {}

void CellTable::take(int cell, bool sink) {
    n_held_ += !holds(cell);
    born_[cell]  = ++now_;
    seen_[cell]  = batch_;
    flags_[cell] = uint8_t(flag_holds | (sink ? flag_sink : 0));
}

void CellTable::begin(const CellBatch & batch, int sinks, int window) {
    batch_++;
    for (size_t cell = 0; loading_ && cell < flags_.size(); cell++) {
        flags_[cell] &= uint8_t(~flag_loading);
    }
    loading_ = false;
    for (int cell : waiting_) {
        staged_[cell] = -1;
    }
    waiting_.clear();
    waiting_.reserve(size_t(batch.n_tokens));
    for (int t = 0; t < batch.n_tokens; t++) {
        const int cell = int(batch.cells[t] - batch.first_cell);
        staged_[cell]  = t;
        waiting_.push_back(cell);
        take(cell, count_seen(batch, t, sinks + 1) <= sinks);
    }
    mark_seen(batch);
    // The last token of each sequence in the batch decides which cells of that sequence are recent.
    std::vector<int> last;
    for (int t = batch.n_tokens - 1; t >= 0; t--) {
        const int  cell    = int(batch.cells[t] - batch.first_cell);
        const bool covered = std::any_of(last.begin(), last.end(), [&](int later) { return sees(batch, later, cell); });
        if (!covered) {
            last.push_back(t);
            mark_recent(batch, t, window);
        }
    }
}

void CellTable::mark_seen(const CellBatch & batch) {
    for (int cell = 0; cell < batch.n_kv; cell++) {
        for (int t = batch.n_tokens - 1; t >= 0; t--) { // a causal sequence: the last token sees what the others see
            if (sees(batch, t, cell)) {
                seen_[cell] = batch_;
                break;
            }
        }
    }
}

void CellTable::mark_recent(const CellBatch & batch, int token, int window) {
    uint32_t oldest =
        now_ + 1 - uint32_t(std::min<int64_t>(window, now_)); // if the window's tokens were stored one after another
    int n = 0;
    for (int cell = 0; cell < batch.n_kv; cell++) {
        n += holds(cell) && born_[cell] >= oldest && sees(batch, token, cell);
    }
    if (n < window) { // they were not: other sequences' tokens stand between
        std::vector<uint32_t> births;
        for (int cell = 0; cell < batch.n_kv; cell++) {
            if (holds(cell) && sees(batch, token, cell)) {
                births.push_back(born_[cell]);
            }
        }
        oldest = 0;
        if (int(births.size()) > window && window > 0) {
            std::nth_element(births.begin(), births.begin() + window - 1, births.end(), std::greater<uint32_t>());
            oldest = births[window - 1];
        }
    }
    for (int cell = 0; cell < batch.n_kv; cell++) {
        if (sees(batch, token, cell) && holds(cell)) {
            const bool recent = window > 0 && born_[cell] >= oldest;
            flags_[cell]      = uint8_t((flags_[cell] & ~flag_recent) | (recent ? flag_recent : 0));
        }
    }
}

void CellTable::hold(int cell, int sinks) {
    if (!holds(cell)) {
        take(cell, n_held_ < sinks);
        flags_[cell] |= flag_loading;
        loading_ = true;
    }
}

void CellTable::clear() {
    std::fill(flags_.begin(), flags_.end(), uint8_t(0));
    std::fill(staged_.begin(), staged_.end(), -1);
    waiting_.clear();
    n_held_ = 0;
}

int CellTable::end() const {
    int n = size();
    while (n > 0 && !holds(n - 1)) {
        n--;
    }
    return n;
}

size_t CellTable::bytes(size_t n_cells, size_t n_waiting) {
    const size_t per_cell = 2 * sizeof(uint32_t) + sizeof(uint8_t) + sizeof(int32_t); // born, seen, flags, staged
    return n_cells * per_cell + n_waiting * sizeof(int);
}

} // namespace mikv
