#include "store/cache.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "kernel/batch.h"
#include "store/error.h"

namespace mikv {

namespace {

std::atomic<uint64_t> last_id{0};
std::atomic<uint64_t> n_moves{0};

size_t state_bytes(const HeadLayout & l, bool query_sums, int n_blocks) {
    return sizeof(HeadState) + sizeof(float) * l.k.dim * (query_sums ? 3 : 1) + size_t(n_blocks);
}

// Free slots and free rows are lists through their masses.
uint32_t next_free(const float * mass, uint32_t i) {
    uint32_t next;
    std::memcpy(&next, &mass[i], sizeof(next));
    return next;
}

void set_next_free(float * mass, uint32_t i, uint32_t next) { std::memcpy(&mass[i], &next, sizeof(next)); }

void free_all(uint32_t * owner, float * mass, int n) {
    for (int i = 0; i < n; i++) {
        owner[i] = free_slot;
        set_next_free(mass, uint32_t(i), uint32_t(i + 1));
    }
}

} // namespace

int64_t planned_bytes(const CacheLayout & layout, const mikv_shape & s) {
    const int n_batch = std::min(staging_tokens, s.n_cells);
    int64_t   heads   = 0;
    for (const HeadLayout & head : layout.heads) {
        heads += int64_t(head.total_bytes() + state_bytes(head, layout.query_sums, layout.n_blocks)) +
                 int64_t(sizeof(uint16_t)) * layout.balancer_dim;
    }
    return heads * s.n_stream + int64_t(s.n_stream * CellTable::bytes(size_t(s.n_cells), size_t(n_batch))) +
           int64_t(Staging::bytes(n_batch, s.n_head_kv, s.head_dim_k, s.head_dim_v));
}

int take_slot(Head & head, uint32_t row) {
    HeadState & s = head.state;
    if (head.view.whole()) {
        s.n_refined++;
        return int(row);
    }
    if (s.n_free == 0) {
        return -1;
    }
    const uint32_t slot       = s.first_free;
    s.first_free              = next_free(head.view.slot_mass, slot);
    head.view.slot_cell[slot] = row;
    head.view.slot_mass[slot] = 0.0f;
    s.n_free--;
    s.n_refined++;
    s.end_slot = std::max(s.end_slot, int32_t(slot) + 1);
    return int(slot);
}

void free_slot_of(Head & head, int slot) {
    HeadState & s = head.state;
    s.n_refined--;
    if (head.view.whole()) {
        return;
    }
    head.view.slot_cell[slot] = free_slot;
    set_next_free(head.view.slot_mass, uint32_t(slot), s.first_free);
    s.first_free = uint32_t(slot);
    s.n_free++;
}

int take_exact(Head & head, uint32_t row) {
    for (int e = 0; e < head.view.n_exact; e++) {
        if (head.view.exact_cell[e] == free_slot) {
            head.view.exact_cell[e] = row;
            head.state.n_exact++;
            return e;
        }
    }
    return -1;
}

void free_exact_of(Head & head, int exact) {
    head.view.exact_cell[exact] = free_slot;
    head.state.n_exact--;
}

void free_place(Head & head, int32_t place) {
    const int slot = head.view.slot_of(place), exact = head.view.exact_of(place);
    if (slot >= 0) {
        free_slot_of(head, slot);
    } else if (exact >= 0) {
        free_exact_of(head, exact);
    }
}

int take_row(Head & head, uint32_t cell) {
    HeadState & s = head.state;
    if (s.n_free_rows == 0) {
        return -1;
    }
    const uint32_t row      = s.first_free_row;
    s.first_free_row        = next_free(head.view.row_mass, row);
    head.view.row_cell[row] = cell;
    head.view.row_mass[row] = 0.0f;
    s.n_free_rows--;
    return int(row);
}

void free_row(Head & head, int row) {
    HeadState & s           = head.state;
    head.view.row_cell[row] = free_slot;
    set_next_free(head.view.row_mass, uint32_t(row), s.first_free_row);
    s.first_free_row = uint32_t(row);
    s.n_free_rows++;
}

std::vector<uint32_t> free_list(const Head & head, Held what) {
    const bool            rows = what == Held::rows;
    const float *         mass = rows ? head.view.row_mass : head.view.slot_mass;
    const int             n    = rows ? head.state.n_free_rows : head.view.whole() ? 0 : head.state.n_free;
    std::vector<uint32_t> order;
    uint32_t              at = rows ? head.state.first_free_row : head.state.first_free;
    for (int i = 0; i < n; i++) {
        order.push_back(at);
        at = next_free(mass, at);
    }
    return order;
}

std::vector<uint32_t> free_order(const uint32_t * owner, int n, const std::vector<uint32_t> & first) {
    std::vector<bool>     listed(static_cast<size_t>(n));
    std::vector<uint32_t> order;
    const auto            add = [&](uint32_t i) {
        if (owner[i] == free_slot && !listed[i]) {
            listed[i] = true;
            order.push_back(i);
        }
    };
    for (uint32_t i : first) {
        if (i < listed.size()) {
            add(i);
        }
    }
    for (int i = 0; i < n; i++) {
        add(uint32_t(i));
    }
    return order;
}

void set_free_list(Head & head, Held what, const std::vector<uint32_t> & order) {
    const bool rows = what == Held::rows;
    float *    mass = rows ? head.view.row_mass : head.view.slot_mass;
    uint32_t   next = uint32_t(rows ? head.view.n_cells : head.view.n_slots);
    for (size_t i = order.size(); i-- > 0;) {
        set_next_free(mass, order[i], next);
        next = order[i];
    }
    (rows ? head.state.first_free_row : head.state.first_free) = next;
    (rows ? head.state.n_free_rows : head.state.n_free)        = int32_t(order.size());
    if (!rows) {
        head.state.end_slot = head.view.n_slots;
        while (head.state.end_slot > 0 && head.view.slot_cell[head.state.end_slot - 1] == free_slot) {
            head.state.end_slot--;
        }
    }
}

mikv_status Cache::create(const mikv_config & config, const mikv_shape & shape, std::vector<int> layers,
                          std::shared_ptr<Cache> * out) {
    CacheLayout layout;
    if (mikv_status status = plan_cache(config, shape, layers, &layout)) {
        return status;
    }
    std::shared_ptr<Cache> cache(new Cache);
    cache->id_     = ++last_id;
    cache->family_ = cache->id_;
    cache->shape_  = shape;
    cache->config_ = applied_config(config, shape, layout);
    cache->layout_ = layout;
    cache->policy_ = policy_named(config.policy);
    cache->layers_ = std::move(layers);
    if (!cache->allocate()) {
        return fail(MIKV_ERROR_MEMORY,
                    "%lld bytes of memory for the KV cache are not to be had: use a smaller context or budget",
                    (long long)planned_bytes(layout, shape));
    }
    *out = cache;
    return MIKV_OK;
}

bool Cache::allocate() {
    for (int i = 0; i < shape_.n_layer; i++) {
        memory_.push_back(std::make_unique<Memory>());
        if (!memory_.back()->allocate(layout_.layer_bytes(i) * size_t(shape_.n_stream))) {
            return false;
        }
    }
    const size_t heads = size_t(shape_.n_layer) * shape_.n_stream * shape_.n_head_kv;
    states_.resize(heads);
    mean_sums_.resize(heads * size_t(layout_.heads.front().k.dim));
    balancers_.resize(heads * size_t(layout_.balancer_dim));
    has_mean_.resize(heads * size_t(layout_.n_blocks));
    query_sums_.resize(layout_.query_sums ? 2 * heads * size_t(layout_.heads.front().k.dim) : 0);
    for (int i = 0; i < shape_.n_stream; i++) {
        cells_.push_back(std::make_unique<CellTable>(shape_.n_cells));
    }
    staging_ = std::make_unique<Staging>(shape_.n_head_kv, shape_.head_dim_k, shape_.head_dim_v);
    clear();
    return true;
}

std::shared_ptr<Cache> Cache::empty_twin() const {
    std::shared_ptr<Cache> twin(new Cache);
    twin->id_     = ++last_id;
    twin->family_ = family_;
    twin->shape_  = shape_;
    twin->config_ = config_;
    twin->layout_ = layout_;
    twin->policy_ = policy_;
    twin->layers_ = layers_;
    return twin->allocate() ? twin : nullptr;
}

uint64_t Cache::moves() { return n_moves; }

void Cache::swap_contents(Cache & twin) {
    n_moves++;
    memory_.swap(twin.memory_);
    states_.swap(twin.states_);
    mean_sums_.swap(twin.mean_sums_);
    has_mean_.swap(twin.has_mean_);
    query_sums_.swap(twin.query_sums_);
    balancers_.swap(twin.balancers_);
    cells_.swap(twin.cells_);
}

Head Cache::head(int index, int stream, int h) {
    const int          i      = flat(index, stream, h);
    const HeadLayout & layout = layout_.at(index, h);
    size_t             offset = layout_.layer_bytes(index) * size_t(stream);
    for (int before = 0; before < h; before++) {
        offset += layout_.at(index, before).total_bytes();
    }
    return {view_head(layout, memory_[index]->data() + offset),
            states_[i],
            mean_sums_.data() + size_t(i) * layout.k.dim,
            has_mean_.data() + size_t(i) * layout_.n_blocks,
            layout_.query_sums ? query_sums_.data() + 2 * size_t(i) * layout.k.dim : nullptr,
            layout_.balancer_dim ? balancers_.data() + size_t(i) * layout_.balancer_dim : nullptr};
}

Transform Cache::key_transform(const Head & head) const {
    return {shape_.head_dim_k,        row_dim(shape_.head_dim_k),
            config_.rotate != 0,      head.state.balanced ? head.balancer : nullptr,
            Balance(config_.balance), head.view.k.lead_dim()};
}

Transform Cache::value_transform() const {
    return {shape_.head_dim_v, row_dim(shape_.head_dim_v), config_.rotate != 0, nullptr};
}

StagedRows Cache::staged(const Head & head, int number, int first, int n, const RowSource & elsewhere) const {
    const Transform k = key_transform(head), v = value_transform();
    return elsewhere.k ? staging_->rows(elsewhere, first, n, number, k, v) : staging_->rows(first, n, number, k, v);
}

void Cache::index_cells(const Head & head, int first, int last, int32_t * place) const {
    const HeadView & h = head.view;
    const uint32_t   n = uint32_t(last - first); // free_slot is above every row
    std::fill(place + first, place + last, place_base);
    for (int row = first; row < std::min(last, h.whole() ? h.n_cells : 0); row++) {
        place[row] = h.place_of_slot(row);
    }
    for (int slot = 0; slot < head.state.end_slot; slot++) {
        if (h.slot_cell[slot] - uint32_t(first) < n) {
            place[h.slot_cell[slot]] = h.place_of_slot(slot);
        }
    }
    for (int e = 0; e < h.n_exact; e++) {
        if (h.exact_cell[e] - uint32_t(first) < n) {
            place[h.exact_cell[e]] = -2 - e;
        }
    }
}

void Cache::reset_head(Head head) {
    const HeadView & h     = head.view;
    head.state             = HeadState();
    head.state.n_free      = h.n_slots;
    head.state.n_free_rows = h.pooled ? h.n_cells : 0;
    free_all(h.slot_cell, h.slot_mass, h.n_maps());
    free_all(h.row_cell, h.row_mass, head.state.n_free_rows);
    std::fill(h.exact_cell, h.exact_cell + h.n_exact, free_slot);
    std::fill(h.k_mean, h.k_mean + size_t(h.n_blocks()) * h.k.dim, uint16_t(0));
    std::fill(head.mean_sum, head.mean_sum + h.k.dim, 0.0f);
    std::fill(head.has_mean, head.has_mean + h.n_blocks(), uint8_t(0));
    std::fill_n(head.query_sums, head.query_sums ? 2 * h.k.dim : 0, 0.0f);
}

void Cache::live(std::unique_ptr<Elsewhere> elsewhere) {
    if (elsewhere_ && !elsewhere) {
        bring_home(all_layers, true);
    }
    elsewhere_ = std::move(elsewhere);
}

void Cache::bring_home(int layer, bool change) {
    if (elsewhere_) {
        elsewhere_->bring_home(layer, change);
    }
}

void Cache::clear() {
    if (elsewhere_) {
        elsewhere_->emptied();
    }
    for (int index = 0; index < shape_.n_layer; index++) {
        for (int stream = 0; stream < shape_.n_stream; stream++) {
            for (int h = 0; h < shape_.n_head_kv; h++) {
                reset_head(head(index, stream, h));
            }
        }
    }
    for (auto & table : cells_) {
        table->clear();
    }
}

void Cache::copy_stream(int index, int from, int to) {
    bring_home(index, true);
    const size_t stream_bytes = layout_.layer_bytes(index);
    uint8_t *    memory       = memory_[index]->data();
    std::memcpy(memory + stream_bytes * to, memory + stream_bytes * from, stream_bytes);
    for (int h = 0; h < shape_.n_head_kv; h++) {
        Head source = head(index, from, h), target = head(index, to, h);
        target.state = source.state;
        std::copy(source.mean_sum, source.mean_sum + source.view.k.dim, target.mean_sum);
        std::copy_n(source.has_mean, source.view.n_blocks(), target.has_mean);
        std::copy_n(source.query_sums, source.query_sums ? 2 * source.view.k.dim : 0, target.query_sums);
        std::copy_n(source.balancer, layout_.balancer_dim, target.balancer);
    }
}

void Cache::copy_stream_cells(int from, int to) {
    bring_home(no_layer, true);
    *cells_[to] = *cells_[from];
}

} // namespace mikv
