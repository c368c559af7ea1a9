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

// Sums over the heads and streams of one layer.
struct LayerSums {
    int64_t rows_exact = 0, rows_refined = 0, rows = 0, demotions = 0;
    double  mass[3] = {0, 0, 0};
};

LayerSums sum_layer(Cache & cache, int index) {
    LayerSums sums;
    for (int stream = 0; stream < cache.shape().n_stream; stream++) {
        sums.rows += int64_t(cache.cells(stream).n_held()) * cache.shape().n_head_kv;
        for (int h = 0; h < cache.shape().n_head_kv; h++) {
            const HeadState & state = cache.head(index, stream, h).state;
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
    s.n_slots      = layout_.n_slots;
    s.bytes_total  = int64_t(memory_[index]->size_bytes());
    s.rows_exact   = sums.rows_exact;
    s.rows_refined = sums.rows_refined;
    s.rows_base    = sums.rows - sums.rows_exact - sums.rows_refined;
    s.demotions    = sums.demotions;
    share_mass(sums.mass, &s.mass_exact, &s.mass_refined, &s.mass_base);
    return s;
}

mikv_stats Cache::stats() {
    const int64_t heads = int64_t(shape_.n_layer) * shape_.n_stream * shape_.n_head_kv;
    mikv_stats    s{};
    s.id             = id_;
    s.shape          = shape_;
    s.config         = config_;
    s.bytes_base     = heads * int64_t(layout_.base_bytes());
    s.bytes_refined  = heads * int64_t(layout_.refined_bytes());
    s.bytes_metadata = heads * int64_t(layout_.metadata_bytes()) + int64_t(states_.size() * sizeof(HeadState)) +
                       int64_t(mean_sums_.size() * sizeof(float)) + int64_t(has_mean_.size());
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
        for (int i = 0; i < 3; i++) {
            mass[i] += sums.mass[i];
        }
    }
    share_mass(mass, &s.mass_exact, &s.mass_refined, &s.mass_base);
    s.bytes_staging     = int64_t(staging_->size_bytes());
    s.bytes_scratch     = int64_t(scratch.size_bytes());
    s.bytes_total       = s.bytes_base + s.bytes_refined + s.bytes_metadata + s.bytes_staging;
    s.bytes_f16         = f16_bytes(shape_);
    const int64_t k_row = layout_.k.base_bytes() + 4 * layout_.k.n_groups();
    const int64_t v_row = layout_.v.base_bytes() + 4 * layout_.v.n_groups();
    s.bytes_used        = s.tokens * shape_.n_layer * shape_.n_head_kv * (k_row + v_row) +
                   s.rows_refined * (layout_.k.refinement_bytes() + layout_.v.refinement_bytes() + 8) +
                   s.rows_exact * (2 * (layout_.k.dim + layout_.v.dim) + 4);
    s.bytes_used_f16 = s.tokens * shape_.n_layer * shape_.n_head_kv * 2 * (layout_.k.dim + layout_.v.dim);
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
