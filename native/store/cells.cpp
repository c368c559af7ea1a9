#include "store/cells.h"

#include <algorithm>
#include <functional>

namespace mikv {

namespace {

bool sees(const CellBatch & b, int token, int cell) { return !b.mask || b.mask[token * b.mask_stride + cell] != hidden; }

// How many cells the token sees, counting no further than `enough`.
int count_seen(const CellBatch & b, int token, int enough) {
    int n = 0;
    for (int cell = 0; cell < b.n_kv && n < enough; cell++) {
        n += sees(b, token, cell);
    }
    return n;
}

constexpr int run = 64; // cells that are looked at together: few of the runs hold something recent

// Was one of the cells [first, last) stored at or after `oldest`?
bool any_since(const uint32_t * born, int first, int last, uint32_t oldest) {
    int n = 0;
    for (int cell = first; cell < last; cell++) {
        n += born[cell] >= oldest;
    }
    return n > 0;
}

} // namespace

CellTable::CellTable(int n_cells) : born_(n_cells), seen_(n_cells), flags_(n_cells), staged_(n_cells, -1) {}

void CellTable::take(int cell, bool sink) {
    n_held_ += !holds(cell);
    born_[cell]  = ++now_;
    seen_[cell]  = batch_;
    flags_[cell] = uint8_t(cell_holds | (sink ? cell_sink : 0));
}

void CellTable::begin(const CellBatch & batch, int sinks, int window) {
    batch_++;
    for (size_t cell = 0; loading_ && cell < flags_.size(); cell++) {
        flags_[cell] &= uint8_t(~cell_loading);
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
    if (!batch.mask) {
        std::fill_n(seen_.begin(), batch.n_kv, batch_);
        return;
    }
    uint32_t *     seen = seen_.data();
    const uint32_t now  = batch_; // copies: for all the compiler knows, what is not one is changed with the cells
    const int      n_kv = batch.n_kv;
    for (int t = 0; t < batch.n_tokens; t++) {
        const uint16_t * mask = batch.mask + t * batch.mask_stride;
        for (int cell = 0; cell < n_kv; cell++) { // without a branch: the compiler makes vectors of it
            const uint32_t yes = 0u - uint32_t(mask[cell] != hidden);
            seen[cell]         = (now & yes) | (seen[cell] & ~yes);
        }
    }
}

int CellTable::count_since(const CellBatch & batch, int token, uint32_t oldest) const {
    const uint32_t * born  = born_.data();
    const uint8_t *  flags = flags_.data();
    int              n     = 0;
    if (!batch.mask) {
        for (int cell = 0; cell < batch.n_kv; cell++) {
            n += int(born[cell] >= oldest) & (flags[cell] & cell_holds);
        }
        return n;
    }
    const uint16_t * mask = batch.mask + token * batch.mask_stride;
    for (int cell = 0; cell < batch.n_kv; cell++) {
        n += int(born[cell] >= oldest) & int(mask[cell] != hidden) & (flags[cell] & cell_holds);
    }
    return n;
}

// The youngest `window` cells that the token sees are those stored at or after this. Looks further back until there are enough:
// they stand one after another unless other sequences' tokens lie between them, or tokens were removed.
uint32_t CellTable::oldest_recent(const CellBatch & batch, int token, int window) const {
    int64_t  reach = window;
    uint32_t oldest;
    int      n;
    do {
        oldest = now_ + 1 - uint32_t(std::min<int64_t>(reach, now_));
        n      = count_since(batch, token, oldest);
        reach *= 4;
    } while (n < window && oldest > 1);
    if (n > window) {
        std::vector<uint32_t> births;
        for (int first = 0; first < batch.n_kv; first += run) {
            const int last = std::min(first + run, batch.n_kv);
            for (int cell = any_since(born_.data(), first, last, oldest) ? first : last; cell < last; cell++) {
                if (born_[cell] >= oldest && holds(cell) && sees(batch, token, cell)) {
                    births.push_back(born_[cell]);
                }
            }
        }
        std::nth_element(births.begin(), births.begin() + window - 1, births.end(), std::greater<uint32_t>());
        oldest = births[window - 1];
    }
    return oldest;
}

void CellTable::mark_recent(const CellBatch & batch, int token, int window) {
    const uint32_t   oldest = window > 0 ? oldest_recent(batch, token, window) : ~0u; // nothing is as young as that
    const uint32_t * born   = born_.data();
    uint8_t *        flags  = flags_.data();
    for (int first = 0; first < batch.n_kv; first += run) {
        const int last   = std::min(first + run, batch.n_kv);
        uint8_t   marked = 0;
        for (int cell = first; cell < last; cell++) {
            marked |= flags[cell];
        }
        if (!(marked & cell_recent) && !any_since(born, first, last, oldest)) {
            continue; // as in nearly all runs: nothing was recent, and nothing is
        }
        for (int cell = first; cell < last; cell++) {
            if ((flags[cell] & cell_holds) && sees(batch, token, cell)) {
                flags[cell] = uint8_t((flags[cell] & ~cell_recent) | (born[cell] >= oldest ? cell_recent : 0));
            }
        }
    }
}

void CellTable::hold(int cell, int sinks) {
    if (!holds(cell)) {
        take(cell, n_held_ < sinks);
        flags_[cell] |= cell_loading;
        loading_ = true;
    }
}

void CellTable::restore(int cell, const Note & note) {
    born_[cell]  = note.born;
    seen_[cell]  = note.seen;
    flags_[cell] = note.flags & (cell_holds | cell_sink | cell_recent);
    n_held_ += holds(cell);
}

void CellTable::restore_clock(uint32_t now, uint32_t batches) {
    now_   = now;
    batch_ = batches;
}

void CellTable::clear() {
    std::fill(flags_.begin(), flags_.end(), uint8_t(0));
    std::fill(staged_.begin(), staged_.end(), -1);
    waiting_.clear();
    n_held_ = 0;
}

void CellTable::restore(const CellImage & image) {
    const size_t n = born_.size();
    std::copy_n(image.born, n, born_.begin());
    std::copy_n(image.seen, n, seen_.begin());
    std::copy_n(image.flags, n, flags_.begin());
    std::copy_n(image.staged, n, staged_.begin());
    now_   = image.now;
    batch_ = image.batch;
    waiting_.clear();
    n_held_  = 0;
    loading_ = false;
    for (int cell = 0; cell < int(n); cell++) {
        if (staged_[cell] >= 0) {
            waiting_.push_back(cell);
        }
        n_held_ += holds(cell);
        loading_ = loading_ || is_loading(cell);
    }
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
