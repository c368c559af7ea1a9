// What a cache tells of itself: bytes really allocated, rows by precision, attention mass by precision.
#include "store/cache.h"

namespace mikv {

namespace {

void share_mass(const double mass[3], double * exact, double * refined, double * base) {
    const double total = mass[0] + mass[1] + mass[2];
    *exact             = total > 0 ? mass[0] / total : 0;
    *refined           = total > 0 ? mass[1] / total : 0;
    *base              = total > 0 ? mass[2] / total : 0;
}

int64_t used_bytes(const Head & head, int64_t n_held) {
    const RowFormat &k = head.view.k, &v = head.view.v;
    const int64_t    base    = int64_t(k.base_bytes() + v.base_bytes() + sizeof(uint16_t) * (k.n_groups() + v.n_groups()));
    const int64_t    refined = int64_t(k.refinement_bytes() + v.refinement_bytes() + sizeof(uint32_t) + sizeof(float));
    const int64_t    exact   = int64_t(sizeof(uint16_t) * (k.dim + v.dim) + sizeof(uint32_t));
    return n_held * base + head.state.n_refined * refined + head.state.n_exact * exact;
}

// Sums over the heads and streams of one layer.
struct LayerSums {
    int64_t rows_exact = 0, rows_refined = 0, rows = 0, demotions = 0;
    int64_t bytes_used = 0; // by rows held
    double  mass[3]    = {0, 0, 0};
};

LayerSums sum_layer(Cache & cache, int index) {
    LayerSums sums;
    for (int stream = 0; stream < cache.shape().n_stream; stream++) {
        const int64_t n_held = cache.cells(stream).n_held();
        sums.rows += n_held * cache.shape().n_head_kv;
        for (int h = 0; h < cache.shape().n_head_kv; h++) {
            const Head        head  = cache.head(index, stream, h);
            const HeadState & state = head.state;
            sums.bytes_used += used_bytes(head, n_held);
            sums.rows_exact += state.n_exact;
            sums.rows_refined += state.n_refined;
            sums.demotions += state.demotions;
            for (int i = 0; i < 3; i++) {
                sums.mass[i] += state.mass[i];
            }
        }
    }
    return sums;
}

} // namespace

mikv_layer_stats Cache::layer_stats(int index) {
    const LayerSums  sums = sum_layer(*this, index);
    mikv_layer_stats s{};
    s.layer        = layers_[index];
    s.k_bits       = layout_.at(index, 0).k.bits;
    s.v_bits       = layout_.at(index, 0).v.bits;
    s.refined_bits = layout_.at(index, 0).k.refined_bits;
    for (int h = 0; h < shape_.n_head_kv; h++) {
        s.n_slots += layout_.at(index, h).n_slots;
    }
    s.bytes_total  = int64_t(memory_[index]->size_bytes());
    s.rows_exact   = sums.rows_exact;
    s.rows_refined = sums.rows_refined;
    s.rows_base    = sums.rows - sums.rows_exact - sums.rows_refined;
    s.demotions    = sums.demotions;
    share_mass(sums.mass, &s.mass_exact, &s.mass_refined, &s.mass_base);
    return s;
}

mikv_stats Cache::stats() {
    mikv_stats s{};
    s.id             = id_;
    s.shape          = shape_;
    s.config         = config_;
    s.bytes_metadata = int64_t(states_.size() * sizeof(HeadState) + (mean_sums_.size() + query_sums_.size()) * sizeof(float) +
                               has_mean_.size() + balancers_.size() * sizeof(uint16_t));
    for (const HeadLayout & head : layout_.heads) {
        s.bytes_base += shape_.n_stream * int64_t(head.base_bytes());
        s.bytes_refined += shape_.n_stream * int64_t(head.refined_bytes());
        s.bytes_metadata += shape_.n_stream * int64_t(head.metadata_bytes());
    }
    double mass[3] = {0, 0, 0};
    for (auto & table : cells_) {
        s.bytes_metadata += int64_t(table->size_bytes());
        s.tokens += table->n_held();
    }
    for (int index = 0; index < shape_.n_layer; index++) {
        const LayerSums sums = sum_layer(*this, index);
        s.rows_exact += sums.rows_exact;
        s.rows_refined += sums.rows_refined;
        s.rows_base += sums.rows - sums.rows_exact - sums.rows_refined;
        s.demotions += sums.demotions;
        s.bytes_used += sums.bytes_used;
        for (int i = 0; i < 3; i++) {
            mass[i] += sums.mass[i];
        }
    }
    share_mass(mass, &s.mass_exact, &s.mass_refined, &s.mass_base);
    s.bytes_staging  = int64_t(staging_->size_bytes());
    s.bytes_scratch  = int64_t(scratch.size_bytes());
    s.bytes_total    = s.bytes_base + s.bytes_refined + s.bytes_metadata + s.bytes_staging;
    s.bytes_f16      = f16_bytes(shape_);
    s.bytes_used_f16 = s.tokens * shape_.n_layer * shape_.n_head_kv * 2 * (shape_.head_dim_k + shape_.head_dim_v);
    return s;
}

void Cache::precision(int index, int stream, uint8_t * out) {
    const CellTable & table = cells(stream);
    for (int h = 0; h < shape_.n_head_kv; h++) {
        const HeadView view = head(index, stream, h).view;
        uint8_t *      row  = out + size_t(h) * shape_.n_cells;
        for (int cell = 0; cell < shape_.n_cells; cell++) {
            row[cell] = table.holds(cell) ? uint8_t(view.k.bits) : uint8_t(0);
        }
        for (int slot = 0; slot < view.n_slots; slot++) {
            if (view.slot_cell[slot] != free_slot) {
                row[view.slot_cell[slot]] = uint8_t(view.k.refined_bits);
            }
        }
        for (int e = 0; e < view.n_exact; e++) {
            if (view.exact_cell[e] != free_slot) {
                row[view.exact_cell[e]] = 16;
            }
        }
    }
}

void Cache::scores(int index, int stream, float * out) {
    for (int h = 0; h < shape_.n_head_kv; h++) {
        const HeadView view = head(index, stream, h).view;
        float *        row  = out + size_t(h) * shape_.n_cells;
        for (int cell = 0; cell < shape_.n_cells; cell++) {
            row[cell] = 0.0f;
        }
        for (int slot = 0; slot < view.n_slots; slot++) {
            if (view.slot_cell[slot] != free_slot) {
                row[view.slot_cell[slot]] = view.slot_mass[slot];
            }
        }
    }
}

} // namespace mikv
