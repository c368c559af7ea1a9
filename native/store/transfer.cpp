// Rows in and out in floats: state files, shifts, copies. K and V of a row arrive separately here.
#include <algorithm>
#include <cmath>

#include "backend/cpu/kernels.h"
#include "kernel/load.h"
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

// Places for rows that are being loaded, keys and values one after the other: sinks exact, then the youngest refined, what a
// conversation needs most after a reload. Rows that were there before keep their place: half a row cannot be made more precise.
void adopt_places(HeadWrite & w, const std::vector<int> & cells, std::vector<int32_t> & place) {
    for (int cell : cells) {
        if (w.table.is_loading(cell) && w.table.is_sink(cell) && place[cell] == place_base) {
            const int e = take_exact(w.head, uint32_t(cell));
            place[cell] = e >= 0 ? -2 - e : place_base;
        }
    }
    for (auto it = cells.rbegin(); it != cells.rend() && w.head.state.n_free > 0; ++it) {
        if (w.table.is_loading(*it) && place[*it] == place_base) {
            place[*it] = take_slot(w.head, uint32_t(*it));
        }
    }
}

} // namespace

void Cache::read(int index, bool value, int stream, int first_cell, int n, float * out) {
    const int            dim   = value ? shape_.head_dim_v : shape_.head_dim_k;
    const CellTable &    table = cells(stream);
    std::vector<int32_t> place(first_cell + n);
    std::vector<float>   held(size_t(row_dim(dim)));
    for (int h = 0; h < shape_.n_head_kv; h++) {
        const Head      from = head(index, stream, h);
        const Transform t    = value ? value_transform() : key_transform(from);
        index_cells(from, first_cell, first_cell + n, place.data());
        for (int i = 0; i < n; i++) {
            float * row = out + (int64_t(i) * shape_.n_head_kv + h) * dim;
            if (table.holds(first_cell + i)) {
                load_row(from.view, value, first_cell + i, place[first_cell + i], held.data());
                leave_row(t, held.data(), row);
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
    const int            row_size = row_dim(dim);
    std::vector<float>   buffer(static_cast<size_t>(row_size)), rows(size_t(n) * row_size);
    for (int h = 0; h < shape_.n_head_kv; h++) {
        HeadWrite w          = {head(index, stream, h), table, value, rows.data(), row_size};
        w.head.state.settled = true;
        const Transform t    = value ? value_transform() : key_transform(w.head);
        for (int i = 0; i < n; i++) {
            enter_row(t, in + (int64_t(i) * shape_.n_head_kv + h) * dim, rows.data() + i * row_size);
        }
        index_cells(w.head, first_cell, first_cell + n, place.data());
        changed.clear();
        std::vector<float> keys; // compact: as update_means wants them
        for (int i = 0; i < n; i++) {
            const int cell = first_cell + i;
            if (table.holds(cell) &&
                (adopt || !unchanged(w.head.view, value, cell, place[cell], w.rows + i * w.stride, buffer.data()))) {
                changed.push_back(cell);
                if (!value) {
                    keys.insert(keys.end(), w.rows + i * w.stride, w.rows + (i + 1) * w.stride);
                }
            }
        }
        if (adopt) {
            adopt_places(w, changed, place);
        }
        if (!value && config_.center_keys) {
            update_means(w.head, table, place.data(), changed.data(), int(changed.size()), keys.data(), row_size, true);
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
