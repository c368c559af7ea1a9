// Rows in and out in floats: state files, shifts, copies. K and V of a row arrive separately here.
#include <algorithm>
#include <cmath>

#include "backend/cpu/kernels.h"
#include "kernel/load.h"
#include "kernel/store.h"
#include "store/commit.h"
#include "store/mean.h"

namespace mikv {

namespace {

void load_row(const HeadView & h, bool value, int cell, int32_t place, float * out) {
    if (value) {
        load_value(h, cell, place, out);
    } else {
        load_key(h, cell, place, out);
    }
}

// A row that gets a slot when only half of it is at hand: the other half's refinement reads as the middle of its base bin.
void fill_middle(const RowFormat & f, uint8_t * refinement) {
    const int extra = f.extra_bits();
    const int bytes = f.group * extra / 8;
    std::fill(refinement, refinement + f.refinement_bytes(), uint8_t(0));
    for (int g = 0; g < f.n_groups() && extra > 0; g++) {
        for (int i = 0; i < f.group; i++) {
            planes_put(refinement + g * bytes, f.group, extra, i, 1u << (extra - 1));
        }
    }
}

// Rows that come back as they were read, up to rounding, are left alone: encoding them again would only add error.
bool unchanged(const HeadView & h, bool value, int cell, int32_t place, const float * row, float * buffer) {
    const int dim = value ? h.v.dim : h.k.dim;
    load_row(h, value, cell, place, buffer);
    float largest = 0.0f, difference = 0.0f;
    for (int i = 0; i < dim; i++) {
        largest    = std::max(largest, std::fabs(buffer[i]));
        difference = std::max(difference, std::fabs(buffer[i] - row[i]));
    }
    return difference <= 1e-5f * largest;
}

// One head's part of a write.
struct HeadWrite {
    Head              head;
    const CellTable & table;
    bool              value;
    const float *     rows; // row of cells[i] at rows + source[i] * stride
    int64_t           stride;
};

// A row that becomes exact when only half of it is at hand: the other half is as exact as it was.
void keep_other_half(const HeadWrite & w, int cell, int e) {
    const HeadView &   h = w.head.view;
    std::vector<float> other(size_t(w.value ? h.k.dim : h.v.dim));
    load_row(h, !w.value, cell, place_base, other.data());
    if (w.value) {
        store_exact(h.k_exact + int64_t(e) * h.k.dim, other.data(), h.k.dim);
    } else {
        store_exact(h.v_exact + int64_t(e) * h.v.dim, other.data(), h.v.dim);
    }
}

// Slots for adopted rows that have none, the youngest first: what a conversation needs most after a reload.
void adopt_places(HeadWrite & w, const std::vector<int> & cells, std::vector<int32_t> & place) {
    for (auto it = cells.begin(); it != cells.end(); ++it) {
        if (w.table.is_sink(*it) && place[*it] == place_base) {
            const int e = take_exact(w.head, uint32_t(*it));
            if (e >= 0) {
                keep_other_half(w, *it, e);
                place[*it] = -2 - e;
            }
        }
    }
    for (auto it = cells.rbegin(); it != cells.rend(); ++it) {
        if (place[*it] == place_base) {
            const int slot = take_slot(w.head, uint32_t(*it));
            if (slot < 0) {
                return;
            }
            place[*it] = slot;
            if (w.value) {
                fill_middle(w.head.view.k, w.head.view.k_refined + int64_t(slot) * w.head.view.k.refinement_bytes());
            } else {
                fill_middle(w.head.view.v, w.head.view.v_refined + int64_t(slot) * w.head.view.v.refinement_bytes());
            }
        }
    }
}

} // namespace

void Cache::read(int index, bool value, int stream, int first_cell, int n, float * out) {
    const int            dim   = value ? shape_.head_dim_v : shape_.head_dim_k;
    const CellTable &    table = cells(stream);
    std::vector<int32_t> place(first_cell + n);
    for (int h = 0; h < shape_.n_head_kv; h++) {
        const HeadView view = head(index, stream, h).view;
        index_cells(head(index, stream, h), first_cell + n, place.data());
        for (int i = 0; i < n; i++) {
            float * row = out + (int64_t(i) * shape_.n_head_kv + h) * dim;
            if (table.holds(first_cell + i)) {
                load_row(view, value, first_cell + i, place[first_cell + i], row);
            } else {
                std::fill(row, row + dim, 0.0f);
            }
        }
    }
}

void Cache::write(int index, bool value, int stream, int first_cell, int n, const float * in, bool adopt) {
    const int   dim   = value ? shape_.head_dim_v : shape_.head_dim_k;
    CellTable & table = cells(stream);
    for (int i = 0; i < n && adopt; i++) {
        table.hold(first_cell + i, config_.sinks);
    }
    std::vector<int32_t> place(first_cell + n);
    std::vector<int>     changed;
    std::vector<float>   buffer(size_t(std::max(shape_.head_dim_k, shape_.head_dim_v)));
    for (int h = 0; h < shape_.n_head_kv; h++) {
        HeadWrite w = {head(index, stream, h), table, value, in + int64_t(h) * dim, int64_t(shape_.n_head_kv) * dim};
        index_cells(w.head, first_cell + n, place.data());
        changed.clear();
        std::vector<float> keys; // compact: as update_means wants them
        for (int i = 0; i < n; i++) {
            const int cell = first_cell + i;
            if (table.holds(cell) && (adopt || !unchanged(w.head.view, value, cell, place[cell], w.rows + i * w.stride, buffer.data()))) {
                changed.push_back(cell);
                if (!value) {
                    keys.insert(keys.end(), w.rows + i * w.stride, w.rows + i * w.stride + dim);
                }
            }
        }
        if (adopt) {
            adopt_places(w, changed, place);
        }
        if (!value && config_.center_keys) {
            update_means(w.head, table, place.data(), changed.data(), int(changed.size()), keys.data(), dim, true);
        }
        for (int cell : changed) {
            const float * row = w.rows + (cell - first_cell) * w.stride;
            if (value) {
                store_value(w.head.view, cell, place[cell], row);
            } else {
                store_key(w.head.view, cell, place[cell], row, buffer.data());
            }
        }
    }
}

} // namespace mikv
