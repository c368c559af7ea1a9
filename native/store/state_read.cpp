// From bytes to a twin of a cache. Whatever the bytes are, nothing is read past them and nothing is believed.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "store/error.h"
#include "store/state.h"
#include "store/state_bytes.h"
#include "store/state_head.h"

namespace mikv {

namespace {

constexpr int32_t most = 1 << 28; // cells, slots: more is no cache's

struct Saved {
    mikv_shape               shape{};
    bool                     rotated = false, centred = false;
    Balance                  balance                       = Balance::off;
    char                     policy[MIKV_POLICY_NAME_SIZE] = {0};
    std::vector<SavedStream> streams;
};

mikv_status damaged(const char * what) { return fail(MIKV_ERROR_STATE, "the state is damaged (%s): use another one", what); }

bool is_finite(const std::vector<float> & values) {
    return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

bool ascends_below(const std::vector<uint32_t> & values, int64_t end) {
    for (size_t i = 0; i < values.size(); i++) {
        if (values[i] >= end || (i > 0 && values[i] <= values[i - 1])) {
            return false;
        }
    }
    return true;
}

// Marks each value in `taken`; false: one was taken, or is none of these.
bool take_all(const std::vector<uint32_t> & values, std::vector<bool> & taken) {
    for (uint32_t value : values) {
        if (value >= taken.size() || taken[value]) {
            return false;
        }
        taken[value] = true;
    }
    return true;
}

// A balancer that may be applied: channels each once, factors that can be divided by, or a basis of numbers.
bool is_balancer(Balance balance, const std::vector<uint16_t> & values, int dim) {
    if (values.size() != size_t(balancer_size(balance, dim))) {
        return false;
    }
    if (is_order(balance)) {
        std::vector<bool> taken(size_t(dim), false);
        return take_all(std::vector<uint32_t>(values.begin(), values.end()), taken);
    }
    if (balance == Balance::basis) {
        std::vector<float> axes(values.size() / 2);
        std::memcpy(axes.data(), values.data(), axes.size() * sizeof(float));
        return is_finite(axes);
    }
    return std::all_of(values.begin(), values.end(), [](uint16_t half) {
        const float factor = half_to_float(half);
        return std::isfinite(factor) && factor > 0.0f;
    });
}

bool is_sane(const HeadShape & s) {
    const auto count = [](int n) { return n >= 0 && n <= most; };
    const auto flag  = [](int n) { return n == 0 || n == 1; };
    return is_row_format(s.k) && is_row_format(s.v) && count(s.n_cells) && count(s.n_slots) && count(s.n_exact) &&
           flag(s.exact_slots) && flag(s.pooled) && s.n_slots <= s.n_cells;
}

bool read_stream(StateReader & in, SavedStream * stream) {
    stream->now                      = in.number<uint32_t>();
    stream->batches                  = in.number<uint32_t>();
    stream->cells                    = in.numbers<uint32_t>();
    const std::vector<uint32_t> born = in.numbers<uint32_t>(), seen = in.numbers<uint32_t>();
    const std::vector<uint8_t>  flags = in.numbers<uint8_t>();
    const size_t                n     = stream->cells.size();
    if (!in.good() || born.size() != n || seen.size() != n || flags.size() != n || !ascends_below(stream->cells, most)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        stream->notes.push_back({born[i], seen[i], flags[i]});
    }
    return true;
}

mikv_status read_header(StateReader & in, const Cache & cache, Saved * saved) {
    const uint32_t version = in.number<uint32_t>(), shape_bytes = in.number<uint32_t>();
    if (in.good() && (version != state_version || shape_bytes != sizeof(HeadShape))) {
        return fail(MIKV_ERROR_STATE,
                    "the state is of version %u.%u, and this build reads %u.%u: load it with the version that saved it",
                    version, shape_bytes, state_version, unsigned(sizeof(HeadShape)));
    }
    mikv_shape & s = saved->shape;
    for (int32_t * size : {&s.n_layer, &s.n_head_kv, &s.n_stream, &s.head_dim_k, &s.head_dim_v}) {
        *size = in.number<int32_t>();
    }
    const mikv_shape & c    = cache.shape();
    bool               same = in.good() && s.n_layer == c.n_layer && s.n_head_kv == c.n_head_kv && s.n_stream == c.n_stream &&
                s.head_dim_k == c.head_dim_k && s.head_dim_v == c.head_dim_v;
    for (int index = 0; same && index < c.n_layer; index++) {
        same = in.number<int32_t>() == cache.layer_number(index);
    }
    if (in.good() && !same) {
        return fail(MIKV_ERROR_STATE,
                    "the state is of %d layers with %d heads of %d and %d values in %d streams, and this cache has %d, %d, %d, "
                    "%d and %d: "
                    "load it into the same model, with as many sequences",
                    s.n_layer, s.n_head_kv, s.head_dim_k, s.head_dim_v, s.n_stream, c.n_layer, c.n_head_kv, c.head_dim_k,
                    c.head_dim_v, c.n_stream);
    }
    saved->rotated        = in.number<int32_t>() != 0;
    saved->centred        = in.number<int32_t>() != 0;
    const int32_t balance = in.number<int32_t>();
    if (in.good() && (balance < 0 || balance > int32_t(Balance::alike))) {
        return damaged("its header");
    }
    saved->balance       = Balance(balance);
    const uint8_t * name = in.bytes(sizeof(saved->policy));
    if (!name) {
        return damaged("its header ends early");
    }
    std::memcpy(saved->policy, name, sizeof(saved->policy));
    saved->policy[sizeof(saved->policy) - 1] = 0;
    for (int stream = 0; stream < c.n_stream; stream++) {
        saved->streams.emplace_back();
        if (!read_stream(in, &saved->streams.back())) {
            return damaged("its cells");
        }
        if (int64_t(saved->streams.back().cells.size()) > c.n_cells) {
            return fail(MIKV_ERROR_STATE, "the state has %lld tokens, and this cache has %d cells: use a larger context",
                        (long long)saved->streams.back().cells.size(), c.n_cells);
        }
    }
    return MIKV_OK;
}

bool read_numbers(StateReader & in, const Saved & saved, const Head & like, SavedHead * s) {
    const uint8_t * shape = in.bytes(sizeof(HeadShape));
    if (!shape) {
        return false;
    }
    std::memcpy(static_cast<void *>(&s->shape), shape, sizeof(HeadShape));
    s->state.demotions = in.number<int64_t>();
    bool finite        = true;
    for (double & mass : s->state.mass) {
        mass   = in.number<double>();
        finite = finite && std::isfinite(mass);
    }
    s->state.mean_count = in.number<int32_t>();
    s->state.n_queries  = in.number<int64_t>();
    s->state.settled    = in.number<uint8_t>() != 0;
    s->state.balanced   = in.number<uint8_t>() != 0;
    s->mean_sum         = in.numbers<float>();
    s->query_sums       = in.numbers<float>();
    s->balancer         = in.numbers<uint16_t>();
    const size_t dim    = size_t(like.view.k.dim);
    return in.good() && finite && is_sane(s->shape) && s->shape.k.dim == like.view.k.dim && s->shape.v.dim == like.view.v.dim &&
           s->state.mean_count >= 0 && s->state.n_queries >= 0 && s->mean_sum.size() == dim && is_finite(s->mean_sum) &&
           (s->query_sums.empty() || s->query_sums.size() == 2 * dim) && is_finite(s->query_sums) &&
           (s->state.balanced ? is_balancer(saved.balance, s->balancer, saved.shape.head_dim_k) : s->balancer.empty());
}

// What write_owners wrote: those that are somebody's, whose, and their mass; false: an owner twice, or none of n.
bool read_owners(StateReader & in, int n_places, std::vector<bool> & taken, std::vector<uint32_t> * places,
                 std::vector<uint32_t> * owners, std::vector<float> * mass) {
    const std::vector<uint32_t> all = in.numbers<uint32_t>();
    std::vector<float>          all_mass(mass ? all.size() : 0);
    const uint8_t *             from = in.bytes(all_mass.size() * sizeof(float));
    if (!from || all.size() > size_t(n_places)) {
        return false;
    }
    std::copy_n(from, all_mass.size() * sizeof(float), reinterpret_cast<uint8_t *>(all_mass.data()));
    for (size_t i = 0; i < all.size(); i++) {
        if (all[i] != free_slot) {
            places->push_back(uint32_t(i));
            owners->push_back(all[i]);
        }
        if (mass && all[i] != free_slot) {
            mass->push_back(all_mass[i]);
        }
    }
    return is_finite(all_mass) && take_all(*owners, taken);
}

bool read_rows(StateReader & in, const SavedStream & stream, SavedHead * s) {
    if (s->shape.pooled) {
        std::vector<bool> taken(stream.cells.size());
        if (!read_owners(in, s->shape.n_cells, taken, &s->rows, &s->owners, &s->row_mass)) {
            return false;
        }
    } else {
        s->rows = stream.cells;
        for (size_t i = 0; i < s->rows.size(); i++) {
            s->owners.push_back(uint32_t(i));
        }
    }
    s->row_bytes = in.bytes(s->rows.size() * part_bytes(sizes_of(s->shape), PartOf::row));
    return in.good() && ascends_below(s->rows, s->shape.n_cells);
}

bool read_places(StateReader & in, SavedHead * s) {
    const HeadView    sizes = sizes_of(s->shape);
    std::vector<bool> taken(s->rows.size()); // a row has one place
    if (!read_owners(in, s->shape.n_maps(), taken, &s->slots, &s->slot_rows, &s->slot_mass)) {
        return false;
    }
    s->slot_bytes = in.bytes(s->n_refined() * part_bytes(sizes, PartOf::slot));
    if (!read_owners(in, s->shape.n_exact, taken, &s->exact, &s->exact_rows, nullptr)) {
        return false;
    }
    s->exact_bytes = in.bytes(s->exact.size() * part_bytes(sizes, PartOf::exact));
    s->blocks      = in.numbers<uint32_t>();
    s->block_bytes = in.bytes(s->blocks.size() * part_bytes(sizes, PartOf::block));
    s->free_slots  = in.numbers<uint32_t>();
    s->free_rows   = in.numbers<uint32_t>();
    return in.good() && ascends_below(s->blocks, s->shape.n_blocks());
}

// Where each stream's cells go.
bool split_cells(const Cache & cache, const Saved & saved, const CellList & cells, std::vector<std::vector<uint32_t>> * out) {
    const int64_t n_cells = cache.shape().n_cells;
    int64_t       last    = -1;
    out->resize(saved.streams.size());
    for (int64_t cell : cells) {
        if (cell <= last || cell >= n_cells * cache.shape().n_stream) {
            return false;
        }
        (*out)[size_t(cell / n_cells)].push_back(uint32_t(cell % n_cells));
        last = cell;
    }
    for (size_t stream = 0; stream < out->size(); stream++) {
        if ((*out)[stream].size() != saved.streams[stream].cells.size()) {
            return false;
        }
    }
    return true;
}

mikv_status restore_head(StateReader & in, const Saved & saved, const std::vector<std::vector<uint32_t>> & cells, Cache & twin,
                         int index, int stream, int number) {
    Head      to = twin.head(index, stream, number);
    SavedHead head;
    if (!read_numbers(in, saved, to, &head) || !read_rows(in, saved.streams[size_t(stream)], &head) ||
        !read_places(in, &head)) {
        return damaged("a head's rows");
    }
    if (head.shape.pooled && !to.view.pooled && head.rows.size() < saved.streams[size_t(stream)].cells.size()) {
        return fail(MIKV_ERROR_STATE,
                    "tokens were dropped from the state, and this cache keeps all: load it into one with rows below 1");
    }
    const Restored from{saved.streams[size_t(stream)],
                        cells[size_t(stream)],
                        saved.rotated,
                        saved.centred,
                        std::strcmp(saved.policy, twin.config().policy) == 0,
                        saved.balance};
    if (can_copy(head, from, twin, to)) {
        copy_head(head, from, to);
        return MIKV_OK;
    }
    return convert_head(head, from, twin, stream, to);
}

} // namespace

HeadView sizes_of(const HeadShape & shape) {
    HeadLayout layout;
    static_cast<HeadShape &>(layout) = shape;
    return view_head(layout, reinterpret_cast<uint8_t *>(64)); // not null: null and a bit is undefined
}

void spread_elements(const HeadShape & saved, const uint8_t * from, PartOf of, const HeadView & head,
                     const std::vector<uint32_t> & to) {
    const std::vector<Part> sources = parts_of(sizes_of(saved)), targets = parts_of(head);
    for (size_t i = 0; i < sources.size(); i++) {
        for (int plane = 0; sources[i].of == of && sources[i].n > 0 && plane < sources[i].n_planes; plane++) {
            for (uint32_t element : to) {
                if (element != dropped && targets[i].n > 0) {
                    std::memcpy(targets[i].at(plane, element), from, sources[i].element_bytes);
                }
                from += sources[i].element_bytes;
            }
        }
    }
}

mikv_status state_cells(const Cache & cache, const uint8_t * data, size_t size_bytes, CellList * cells) {
    StateReader in(data, size_bytes);
    Saved       saved;
    if (mikv_status status = read_header(in, cache, &saved)) {
        return status;
    }
    for (size_t stream = 0; stream < saved.streams.size(); stream++) {
        for (size_t i = 0; i < saved.streams[stream].cells.size(); i++) {
            cells->push_back(int64_t(stream) * cache.shape().n_cells + int64_t(i));
        }
    }
    return MIKV_OK;
}

mikv_status read_state(const Cache & cache, const uint8_t * data, size_t size_bytes, const CellList & cells,
                       std::shared_ptr<Cache> * out) {
    StateReader in(data, size_bytes);
    Saved       saved;
    if (mikv_status status = read_header(in, cache, &saved)) {
        return status;
    }
    std::vector<std::vector<uint32_t>> by_stream;
    if (!split_cells(cache, saved, cells, &by_stream)) {
        return fail(MIKV_ERROR_ARGUMENT, "%lld cells for a state: give as many in each stream as it has, in ascending order",
                    (long long)cells.size());
    }
    std::shared_ptr<Cache> twin = cache.empty_twin();
    if (!twin) {
        return fail(MIKV_ERROR_MEMORY, "no memory to read a state beside the cache: use a smaller context");
    }
    for (size_t stream = 0; stream < saved.streams.size(); stream++) {
        CellTable & table = twin->cells(int(stream));
        for (size_t i = 0; i < by_stream[stream].size(); i++) {
            table.restore(int(by_stream[stream][i]), saved.streams[stream].notes[i]);
        }
        table.restore_clock(saved.streams[stream].now, saved.streams[stream].batches);
    }
    for (int index = 0; index < saved.shape.n_layer; index++) {
        for (int stream = 0; stream < saved.shape.n_stream; stream++) {
            for (int h = 0; h < saved.shape.n_head_kv; h++) {
                if (mikv_status status = restore_head(in, saved, by_stream, *twin, index, stream, h)) {
                    return status;
                }
            }
        }
    }
    if (!in.at_end()) {
        return damaged("bytes behind its end");
    }
    *out = twin;
    return MIKV_OK;
}

} // namespace mikv
