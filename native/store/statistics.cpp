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

// Of a key.
int refined_bits_of(const HeadShape & l) { return l.exact_slots ? exact_bits : l.k.refined_bits; }

int64_t used_bytes(const Head & head, int64_t n_rows) {
    const HeadView & h   = head.view;
    const int64_t    map = int64_t(sizeof(uint32_t) + sizeof(float)), halves = int64_t(sizeof(uint16_t) * (h.k.dim + h.v.dim));
    const int64_t packed = int64_t(h.k.base_bytes() + h.v.base_bytes() + sizeof(uint16_t) * (h.k.n_groups() + h.v.n_groups()));
    const int64_t base   = (h.has_base() ? packed : 0) + (h.pooled ? map : 0);
    const int64_t refined =
        h.k.refinement_bytes() + h.v.refinement_bytes() + (h.exact_slots ? halves : 0) + (h.whole() ? 0 : map);
    const int64_t exact = halves + int64_t(sizeof(uint32_t));
    return n_rows * base + head.state.n_refined * refined + head.state.n_exact * exact;
}

// Sums over the heads and streams of one layer.
struct LayerSums {
    int64_t rows_exact = 0, rows_refined = 0, rows = 0, dropped = 0, demotions = 0;
    int64_t bytes_used = 0; // by rows held
    double  mass[3]    = {0, 0, 0};
};

LayerSums sum_layer(Cache & cache, int index) {
    LayerSums sums;
    for (int stream = 0; stream < cache.shape().n_stream; stream++) {
        const int64_t n_held = cache.cells(stream).n_held();
        for (int h = 0; h < cache.shape().n_head_kv; h++) {
            const Head        head   = cache.head(index, stream, h);
            const HeadState & state  = head.state;
            const int64_t     n_rows = head.view.pooled ? head.view.n_cells - state.n_free_rows : n_held;
            sums.rows += n_rows;
            sums.dropped += n_held - n_rows;
            sums.bytes_used += used_bytes(head, n_rows);
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
    bring_home(no_layer, false);
    const LayerSums  sums = sum_layer(*this, index);
    mikv_layer_stats s{};
    s.layer        = layers_[index];
    s.k_bits       = layout_.at(index, 0).k.mean_bits();
    s.v_bits       = layout_.at(index, 0).v.bits;
    s.refined_bits = refined_bits_of(layout_.at(index, 0));
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
    bring_home(no_layer, false);
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
        s.rows_dropped += sums.dropped;
        s.demotions += sums.demotions;
        s.bytes_used += sums.bytes_used;
        for (int i = 0; i < 3; i++) {
            mass[i] += sums.mass[i];
        }
    }
    share_mass(mass, &s.mass_exact, &s.mass_refined, &s.mass_base);
    s.bytes_staging = int64_t(staging_->size_bytes());
    s.bytes_scratch = int64_t(scratch.size_bytes());
    if (elsewhere_) {
        s.bytes_metadata += elsewhere_->metadata_bytes();
        s.bytes_scratch += elsewhere_->scratch_bytes();
    }
    s.bytes_total    = s.bytes_base + s.bytes_refined + s.bytes_metadata + s.bytes_staging;
    s.bytes_f16      = f16_bytes(shape_);
    s.bytes_used_f16 = s.tokens * shape_.n_layer * shape_.n_head_kv * 2 * (shape_.head_dim_k + shape_.head_dim_v);
    return s;
}

void Cache::precision(int index, int stream, uint8_t * out) {
    bring_home(index, false);
    const CellTable & table = cells(stream);
    for (int h = 0; h < shape_.n_head_kv; h++) {
        const HeadView view = head(index, stream, h).view;
        uint8_t *      row  = out + size_t(h) * shape_.n_cells;
        for (int cell = 0; cell < shape_.n_cells; cell++) {
            row[cell] = table.holds(cell) && !view.pooled ? uint8_t(view.k.mean_bits()) : uint8_t(0);
        }
        for (int of = 0; of < view.n_cells && view.pooled; of++) {
            if (view.row_cell[of] != free_slot) {
                row[view.row_cell[of]] = uint8_t(view.whole() ? refined_bits_of(view) : view.k.mean_bits());
            }
        }
        for (int slot = 0; slot < view.n_maps(); slot++) {
            if (view.slot_cell[slot] != free_slot) {
                row[view.cell_of(view.slot_cell[slot])] = uint8_t(refined_bits_of(view));
            }
        }
        for (int e = 0; e < view.n_exact; e++) {
            if (view.exact_cell[e] != free_slot) {
                row[view.cell_of(view.exact_cell[e])] = 16;
            }
        }
    }
}

void Cache::scores(int index, int stream, float * out) {
    bring_home(index, false);
    for (int h = 0; h < shape_.n_head_kv; h++) {
        const HeadView view = head(index, stream, h).view;
        float *        row  = out + size_t(h) * shape_.n_cells;
        for (int cell = 0; cell < shape_.n_cells; cell++) {
            row[cell] = 0.0f;
        }
        for (int slot = 0; slot < view.n_maps() && !view.pooled; slot++) {
            if (view.slot_cell[slot] != free_slot) {
                row[view.slot_cell[slot]] = view.slot_mass[slot];
            }
        }
        for (int of = 0; of < view.n_cells && view.pooled; of++) {
            if (view.row_cell[of] != free_slot) {
                row[view.row_cell[of]] = view.row_mass[of];
            }
        }
    }
}

} // namespace mikv
