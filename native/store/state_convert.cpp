// A saved head into a cache of another codec, or into other blocks of cells: rows are decoded and stored again, one more rounding.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>

#include "codec/half.h"
#include "kernel/load.h"
#include "store/commit.h"
#include "store/error.h"
#include "store/mean.h"
#include "store/state_head.h"

namespace mikv {

namespace {

// The saved head as a head of its own, of as many rows, slots and exact rows as there are; without means, which are of its old blocks.
struct Loaded {
    Memory               memory;
    HeadView             view;
    std::vector<int32_t> place; // of each row
};

HeadShape compact_shape(const SavedHead & saved) {
    HeadShape shape = saved.shape;
    shape.n_cells   = int(saved.rows.size());
    shape.n_slots   = int(saved.n_refined());
    shape.n_exact   = int(saved.exact.size());
    // not whole because by chance all of its rows are refined
    shape.n_slots += shape.pooled && !saved.shape.whole() && shape.n_slots == shape.n_cells ? 1 : 0;
    return shape;
}

std::vector<uint32_t> numbered(size_t n) {
    std::vector<uint32_t> numbers(n);
    std::iota(numbers.begin(), numbers.end(), 0u);
    return numbers;
}

bool load(const SavedHead & saved, Loaded * out) {
    HeadLayout layout;
    static_cast<HeadShape &>(layout) = compact_shape(saved);
    if (!out->memory.allocate(layout.total_bytes())) {
        return false;
    }
    out->view          = view_head(layout, out->memory.data());
    const HeadView & h = out->view;
    spread_elements(saved.shape, saved.row_bytes, PartOf::row, h, numbered(saved.rows.size()));
    spread_elements(saved.shape, saved.slot_bytes, PartOf::slot, h, numbered(saved.n_refined()));
    spread_elements(saved.shape, saved.exact_bytes, PartOf::exact, h, numbered(saved.exact.size()));
    out->place.resize(saved.rows.size(), place_base);
    for (size_t row = 0; row < saved.rows.size() && saved.shape.whole(); row++) {
        out->place[row] = h.place_of_slot(int(row));
    }
    for (size_t i = 0; i < saved.slots.size(); i++) {
        out->place[saved.slot_rows[i]] = h.place_of_slot(int(i));
    }
    for (size_t i = 0; i < saved.exact.size(); i++) {
        out->place[saved.exact_rows[i]] = -2 - int32_t(i);
    }
    return true;
}

// Rows that are found in a saved head, in floats, in the space of the cache that they go to.
class Decoder {
public:
    Decoder(const SavedHead & saved, const Restored & from, const Cache & cache, const Head & to, const Loaded & loaded)
        : saved_(saved), loaded_(loaded), k_to_(cache.key_transform(to)), v_to_(cache.value_transform()), k_from_(k_to_),
          v_from_(v_to_), held_(size_t(std::max(k_to_.row, v_to_.row))), own_(held_.size()) {
        k_from_.rotated  = from.rotated;
        v_from_.rotated  = from.rotated;
        k_from_.balancer = saved.state.balanced ? saved.balancer.data() : nullptr;
        k_from_.balance  = from.balance;
        k_from_.lead     = saved.shape.k.lead_dim();
    }

    void key(uint32_t row, float * out) {
        load_key(loaded_.view, int(row), loaded_.place[row], held_.data());
        if (loaded_.place[row] >= place_base) {
            add_mean(saved_.rows[row] / block_cells);
        }
        move(k_from_, k_to_, out);
    }
    void value(uint32_t row, float * out) {
        load_value(loaded_.view, int(row), loaded_.place[row], held_.data());
        move(v_from_, v_to_, out);
    }

private:
    void add_mean(uint32_t block) {
        const auto at = std::lower_bound(saved_.blocks.begin(), saved_.blocks.end(), block);
        if (at == saved_.blocks.end() || *at != block) {
            return;
        }
        const size_t          dim = size_t(saved_.shape.k.dim);
        std::vector<uint16_t> mean(dim);
        std::memcpy(mean.data(), saved_.block_bytes + size_t(at - saved_.blocks.begin()) * dim * sizeof(uint16_t),
                    dim * sizeof(uint16_t));
        for (size_t i = 0; i < dim; i++) {
            held_[i] += half_to_float(mean[i]);
        }
    }
    void move(const Transform & from, const Transform & to, float * out) {
        if (from.rotated == to.rotated && from.lead == to.lead && !from.balancer && !to.balancer) {
            std::copy_n(held_.data(), to.row, out);
            return;
        }
        leave_row(from, held_.data(), own_.data());
        enter_row(to, own_.data(), out);
    }

    const SavedHead &  saved_;
    const Loaded &     loaded_;
    Transform          k_to_, v_to_, k_from_, v_from_;
    std::vector<float> held_, own_;
};

// What a row was, for the question who gets the better places.
struct Wish {
    uint32_t row; // which of the saved ones
    uint8_t  flags;
    bool     was_exact, was_refined;
    float    mass;
    uint32_t born;
};

std::vector<Wish> wishes(const SavedHead & saved, const SavedStream & stream, const Loaded & loaded, bool same_policy) {
    std::vector<Wish> all;
    for (uint32_t row = 0; row < saved.rows.size(); row++) {
        const CellTable::Note & note  = stream.notes[saved.owners[row]];
        const int32_t           place = loaded.place[row];
        const float             mass  = saved.shape.pooled && same_policy ? saved.row_mass[row] : 0.0f;
        all.push_back({row, note.flags, loaded.view.exact_of(place) >= 0, loaded.view.slot_of(place) >= 0, mass, note.born});
    }
    for (size_t i = 0; i < saved.slots.size() && same_policy; i++) {
        all[saved.slot_rows[i]].mass = saved.slot_mass[i];
    }
    return all;
}

// Sinks and exact rows first, then the window, then what was refined by its attention, then the youngest.
std::vector<const Wish *> by_rank(const std::vector<Wish> & all) {
    std::vector<const Wish *> order;
    for (const Wish & wish : all) {
        order.push_back(&wish);
    }
    const auto rank = [](const Wish * w) {
        const bool     first = (w->flags & cell_sink) != 0 || w->was_exact;
        const uint32_t age   = first ? ~w->born : w->born; // of these the oldest
        return std::make_tuple(first, (w->flags & cell_recent) != 0, w->was_refined, w->mass, age);
    };
    std::stable_sort(order.begin(), order.end(), [&](const Wish * a, const Wish * b) { return rank(a) > rank(b); });
    return order;
}

// The rows that the wishes get, by wish; dropped where a pool has none left. In the order of the cells: blocks of a pool are of neighbours.
std::vector<uint32_t> give_rows(Head & to, const SavedHead & saved, const Restored & from,
                                const std::vector<const Wish *> & order) {
    std::vector<uint32_t> rows(saved.rows.size(), dropped);
    std::vector<bool>     kept(saved.rows.size(), !to.view.pooled);
    for (size_t i = 0; i < order.size() && i < size_t(to.state.n_free_rows); i++) {
        kept[order[i]->row] = true;
    }
    std::vector<uint32_t> by_cell = numbered(saved.rows.size());
    std::sort(by_cell.begin(), by_cell.end(), [&](uint32_t a, uint32_t b) { return saved.owners[a] < saved.owners[b]; });
    for (uint32_t row : by_cell) {
        const uint32_t cell = from.cells[saved.owners[row]];
        if (kept[row]) {
            rows[row] = to.view.pooled ? uint32_t(take_row(to, cell)) : cell;
        } else {
            to.state.demotions++;
        }
    }
    return rows;
}

std::vector<int32_t> give_places(Head & to, const std::vector<uint32_t> & rows, const std::vector<const Wish *> & order) {
    const HeadView &     h = to.view;
    std::vector<int32_t> place(size_t(h.n_cells), place_base);
    for (const Wish * wish : order) {
        const uint32_t row = rows[wish->row];
        const int      e   = row != dropped && ((wish->flags & cell_sink) || wish->was_exact) ? take_exact(to, row) : -1;
        if (e >= 0) {
            place[row] = -2 - e;
        }
    }
    for (const Wish * wish : order) {
        const uint32_t row  = rows[wish->row];
        const int      slot = row != dropped && place[row] == place_base && h.n_slots > 0 ? take_slot(to, row) : -1;
        if (slot >= 0) {
            place[row] = h.place_of_slot(slot);
            if (!h.whole()) {
                h.slot_mass[slot] = wish->mass;
            }
        }
        if (row != dropped && h.pooled) {
            h.row_mass[row] = wish->mass;
        }
    }
    return place;
}

} // namespace

mikv_status convert_head(const SavedHead & saved, const Restored & from, Cache & cache, int stream, Head & to) {
    Loaded loaded;
    if (!load(saved, &loaded)) {
        return fail(MIKV_ERROR_MEMORY, "no memory to read a state beside the cache: use a smaller context");
    }
    const HeadView & h = to.view;
    to.state.settled   = !saved.rows.empty() || saved.state.settled;
    to.state.demotions = saved.state.demotions;
    std::copy(std::begin(saved.state.mass), std::end(saved.state.mass), to.state.mass);
    const std::vector<Wish>               all   = wishes(saved, from.stream, loaded, from.same_policy);
    const std::vector<const Wish *>       order = by_rank(all);
    const std::vector<uint32_t>           rows  = give_rows(to, saved, from, order);
    const std::vector<int32_t>            place = give_places(to, rows, order);
    Decoder                               decoder(saved, from, cache, to, loaded);
    std::vector<std::pair<int, uint32_t>> kept; // row here, row there
    for (uint32_t i = 0; i < rows.size(); i++) {
        if (rows[i] != dropped) {
            kept.push_back({int(rows[i]), i});
        }
    }
    std::sort(kept.begin(), kept.end());
    std::vector<int>   numbers;
    std::vector<float> keys(kept.size() * size_t(h.k.dim)), buffer(size_t(std::max(h.k.dim, h.v.dim))), value(buffer.size());
    for (size_t i = 0; i < kept.size(); i++) {
        numbers.push_back(kept[i].first);
        decoder.key(kept[i].second, keys.data() + i * size_t(h.k.dim));
    }
    if (cache.config().center_keys && h.has_base()) {
        update_means(to, cache.cells(stream), place.data(), numbers.data(), int(numbers.size()), keys.data(), h.k.dim, true);
    }
    for (size_t i = 0; i < kept.size(); i++) {
        store_key(h, numbers[i], place[size_t(numbers[i])], keys.data() + i * size_t(h.k.dim), buffer.data());
        decoder.value(kept[i].second, value.data());
        store_value(h, numbers[i], place[size_t(numbers[i])], value.data());
    }
    return MIKV_OK;
}

} // namespace mikv
