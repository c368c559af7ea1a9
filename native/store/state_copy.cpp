// A saved head into a cache of the same codec: its bytes as they are.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "store/state_head.h"

namespace mikv {

namespace {

bool same_format(const RowFormat & a, const RowFormat & b) {
    static_assert(sizeof(RowFormat) % sizeof(int) == 0, "nothing but ints");
    return std::memcmp(&a, &b, sizeof(RowFormat)) == 0;
}

// A mean key is of a block of cells: keys that come into another one would be read with a mean that is not theirs.
bool changes_blocks(const SavedHead & saved, const Restored & from) {
    for (size_t i = 0; i < from.cells.size(); i++) {
        if (!saved.shape.pooled && from.cells[i] / block_cells != from.stream.cells[i] / block_cells) {
            return true;
        }
    }
    return false;
}

// The refined rows that find a slot here: guarded ones first, then those with most attention.
std::vector<bool> kept_refined(const SavedHead & saved, const Restored & from, int n_slots) {
    std::vector<size_t> order(saved.slots.size());
    std::iota(order.begin(), order.end(), size_t(0));
    const auto is_guarded = [&](size_t i) {
        return (from.stream.notes[saved.owners[saved.slot_rows[i]]].flags & (cell_sink | cell_recent)) != 0;
    };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        const bool first = is_guarded(a), second = is_guarded(b);
        return first != second ? first : saved.slot_mass[a] > saved.slot_mass[b];
    });
    std::vector<bool> kept(saved.slots.size());
    for (size_t i = 0; i < order.size() && i < size_t(n_slots); i++) {
        kept[order[i]] = true;
    }
    return kept;
}

// The numbers of slots here: the saved ones where there are so many, else any that is free.
std::vector<uint32_t> slots_for(const SavedHead & saved, const Restored & from, const HeadView & h) {
    const std::vector<bool> kept = kept_refined(saved, from, h.n_slots);
    std::vector<uint32_t>   slots(saved.slots.size(), dropped);
    std::vector<bool>       taken(static_cast<size_t>(h.n_slots));
    for (size_t i = 0; i < slots.size(); i++) {
        if (kept[i] && saved.slots[i] < taken.size()) {
            slots[i]        = saved.slots[i];
            taken[slots[i]] = true;
        }
    }
    uint32_t next = 0;
    for (size_t i = 0; i < slots.size(); i++) {
        if (kept[i] && slots[i] == dropped) {
            while (taken[next]) {
                next++;
            }
            slots[i]    = next;
            taken[next] = true;
        }
    }
    return slots;
}

void copy_rows(const SavedHead & saved, const Restored & from, Head & to, const std::vector<uint32_t> & rows) {
    const HeadView & h = to.view;
    spread_elements(saved.shape, saved.row_bytes, PartOf::row, h, rows);
    for (size_t i = 0; i < rows.size() && h.pooled; i++) {
        h.row_cell[rows[i]] = from.cells[saved.owners[i]];
        h.row_mass[rows[i]] = from.same_policy ? saved.row_mass[i] : 0.0f;
    }
    if (h.pooled) {
        set_free_list(to, Held::rows, free_order(h.row_cell, h.n_cells, saved.free_rows));
    }
}

void copy_refined(const SavedHead & saved, const Restored & from, Head & to, const std::vector<uint32_t> & rows) {
    const HeadView & h = to.view;
    if (h.whole()) {
        spread_elements(saved.shape, saved.slot_bytes, PartOf::slot, h, rows);
        to.state.n_refined = int32_t(rows.size() - saved.exact.size());
        return;
    }
    const std::vector<uint32_t> slots = slots_for(saved, from, h);
    spread_elements(saved.shape, saved.slot_bytes, PartOf::slot, h, slots);
    for (size_t i = 0; i < slots.size(); i++) {
        if (slots[i] == dropped) {
            to.state.demotions++;
            continue;
        }
        h.slot_cell[slots[i]] = rows[saved.slot_rows[i]];
        h.slot_mass[slots[i]] = from.same_policy ? saved.slot_mass[i] : 0.0f;
        to.state.n_refined++;
    }
    set_free_list(to, Held::slots, free_order(h.slot_cell, h.n_slots, saved.free_slots));
}

void copy_means(const SavedHead & saved, Head & to) {
    std::vector<uint32_t> blocks = saved.blocks;
    for (uint32_t & block : blocks) {
        block = block < uint32_t(to.view.n_blocks()) ? block : dropped;
        if (block != dropped) {
            to.has_mean[block] = 1;
        }
    }
    spread_elements(saved.shape, saved.block_bytes, PartOf::block, to.view, blocks);
}

} // namespace

bool can_copy(const SavedHead & saved, const Restored & from, const Cache & cache, const Head & to) {
    const HeadShape &   a      = saved.shape;
    const HeadView &    b      = to.view;
    const mikv_config & config = cache.config();
    if (!same_format(a.k, b.k) || !same_format(a.v, b.v) || a.exact_slots != b.exact_slots || a.pooled != b.pooled ||
        a.whole() != b.whole() || from.rotated != (config.rotate != 0) || from.centred != (config.center_keys != 0) ||
        (saved.state.balanced && from.balance != Balance(config.balance))) {
        return false;
    }
    const bool fits = (!a.pooled || saved.rows.empty() || saved.rows.back() < uint32_t(b.n_cells)) &&
                      (saved.exact.empty() || saved.exact.back() < uint32_t(b.n_exact));
    return fits && !(from.centred && a.has_base() && changes_blocks(saved, from));
}

void copy_head(const SavedHead & saved, const Restored & from, Head & to) {
    const HeadView &  h = to.view;
    const HeadState & s = saved.state;
    to.state.demotions  = s.demotions;
    to.state.mean_count = s.mean_count;
    to.state.n_queries  = to.query_sums && !saved.query_sums.empty() ? s.n_queries : 0;
    to.state.settled    = s.settled;
    to.state.balanced   = s.balanced;
    std::copy(std::begin(s.mass), std::end(s.mass), to.state.mass);
    std::copy(saved.mean_sum.begin(), saved.mean_sum.end(), to.mean_sum);
    if (to.query_sums) {
        std::copy(saved.query_sums.begin(), saved.query_sums.end(), to.query_sums);
    }
    std::copy(saved.balancer.begin(), saved.balancer.end(), to.balancer);
    std::vector<uint32_t> rows = saved.rows;
    for (size_t i = 0; i < rows.size() && !h.pooled; i++) {
        rows[i] = from.cells[i];
    }
    copy_rows(saved, from, to, rows);
    copy_refined(saved, from, to, rows);
    spread_elements(saved.shape, saved.exact_bytes, PartOf::exact, h, saved.exact);
    for (size_t i = 0; i < saved.exact.size(); i++) {
        h.exact_cell[saved.exact[i]] = rows[saved.exact_rows[i]];
        to.state.n_exact++;
    }
    copy_means(saved, to);
}

} // namespace mikv
