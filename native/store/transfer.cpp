// Rows in and out in floats: state files, shifts, copies. K and V of a row arrive separately here.
#include <algorithm>
#include <cmath>

#include "backend/cpu/kernels.h"
#include "kernel/load.h"
#include "store/commit.h"
#include "store/mean.h"
#include "store/pool.h"

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

bool is_zero(const float * row, int dim) {
    return std::all_of(row, row + dim, [](float x) { return x == 0.0f; });
}

// Places for rows that are being loaded, keys and values one after the other: sinks exact, then the youngest refined, what a
// conversation needs most after a reload. Rows that were there before keep their place: half a row cannot be made more precise.
void adopt_places(Head & head, const CellTable & table, const std::vector<int> & rows, std::vector<int32_t> & place) {
    const HeadView & h  = head.view;
    const auto       is = [&](int row, bool sink) {
        const int cell = int(h.cell_of(uint32_t(row)));
        return table.is_loading(cell) && place[row] == place_base && (!sink || table.is_sink(cell));
    };
    for (int row : rows) {
        const int e = is(row, true) ? take_exact(head, uint32_t(row)) : -1;
        place[row]  = e >= 0 ? -2 - e : place[row];
    }
    for (auto it = rows.rbegin(); it != rows.rend() && h.n_slots > 0 && head.state.n_free > 0; ++it) {
        if (is(*it, false)) {
            place[*it] = h.place_of_slot(take_slot(head, uint32_t(*it)));
        }
    }
}

// Rows of a pool for the tokens that are being loaded: those that have none yet, but for rows of zeros, which is how a dropped token reads. If not
// all fit, sinks and the last ones. Their places are then the base's, until adopt_places.
void adopt_rows(Head & head, const CellTable & table, int first_cell, const std::vector<float> & rows,
                std::vector<int> & row_of, std::vector<int32_t> & place) {
    const int        n = int(row_of.size()), dim = int(rows.size() / row_of.size());
    std::vector<int> wanted;
    for (int i = 0; i < n; i++) {
        if (row_of[i] < 0 && table.is_loading(first_cell + i) && !is_zero(rows.data() + size_t(i) * dim, dim)) {
            wanted.push_back(i);
        }
    }
    int n_skipped = std::max(0, int(wanted.size()) - head.state.n_free_rows);
    for (int i : wanted) {
        if (n_skipped > 0 && !table.is_sink(first_cell + i)) {
            n_skipped--;
        } else if ((row_of[i] = take_row(head, uint32_t(first_cell + i))) >= 0) {
            place[row_of[i]] = place_base;
        }
    }
}

} // namespace

void Cache::read(int index, bool value, int stream, int first_cell, int n, float * out) {
    bring_home(index, false);
    const int          dim   = value ? shape_.head_dim_v : shape_.head_dim_k;
    const CellTable &  table = cells(stream);
    std::vector<float> held(size_t(row_dim(dim)));
    for (int h = 0; h < shape_.n_head_kv; h++) {
        const Head                 from   = head(index, stream, h);
        const Transform            t      = value ? value_transform() : key_transform(from);
        const std::vector<int>     row_of = rows_of_cells(from.view, first_cell, n);
        const std::vector<int32_t> place  = places(from, first_cell, n);
        for (int i = 0; i < n; i++) {
            float * row = out + (int64_t(i) * shape_.n_head_kv + h) * dim;
            if (table.holds(first_cell + i) && row_of[i] >= 0) {
                load_row(from.view, value, row_of[i], place[row_of[i]], held.data());
                leave_row(t, held.data(), row);
            } else {
                std::fill(row, row + dim, 0.0f);
            }
        }
    }
}

std::vector<int32_t> Cache::places(const Head & of, int first_cell, int n) const {
    std::vector<int32_t> place(size_t(of.view.pooled ? of.view.n_cells : first_cell + n));
    index_cells(of, of.view.pooled ? 0 : first_cell, int(place.size()), place.data());
    return place;
}

void Cache::write(int index, bool value, int stream, int first_cell, int n, const float * in, bool adopt) {
    bring_home(index, true);
    const int   dim   = value ? shape_.head_dim_v : shape_.head_dim_k;
    CellTable & table = cells(stream);
    for (int i = 0; i < n && adopt; i++) {
        table.hold(first_cell + i, config_.sinks);
    }
    const int          row_size = row_dim(dim);
    std::vector<float> rows(size_t(n) * row_size);
    for (int h = 0; h < shape_.n_head_kv; h++) {
        Head            to = head(index, stream, h);
        const Transform t  = value ? value_transform() : key_transform(to);
        for (int i = 0; i < n; i++) {
            enter_row(t, in + (int64_t(i) * shape_.n_head_kv + h) * dim, rows.data() + i * row_size);
        }
        to.state.settled = true;
        write_head(to, value, stream, first_cell, n, rows, adopt);
    }
}

void Cache::write_head(Head & to, bool value, int stream, int first_cell, int n, const std::vector<float> & rows, bool adopt) {
    const CellTable &    table    = cells(stream);
    const int            row_size = int(rows.size() / size_t(n));
    std::vector<int>     row_of   = rows_of_cells(to.view, first_cell, n), changed;
    std::vector<int32_t> place    = places(to, first_cell, n);
    std::vector<float>   buffer(static_cast<size_t>(row_size)), compact;
    if (adopt && to.view.pooled) {
        adopt_rows(to, table, first_cell, rows, row_of, place);
    }
    for (int i = 0; i < n; i++) {
        const float * row = rows.data() + size_t(i) * row_size;
        if (table.holds(first_cell + i) && row_of[i] >= 0 &&
            (adopt || !unchanged(to.view, value, row_of[i], place[row_of[i]], row, buffer.data()))) {
            changed.push_back(row_of[i]);
            compact.insert(compact.end(), row, row + row_size);
        }
    }
    if (adopt) {
        adopt_places(to, table, changed, place);
    }
    if (!value && config_.center_keys && to.view.has_base()) {
        update_means(to, table, place.data(), changed.data(), int(changed.size()), compact.data(), row_size, true);
    }
    for (size_t i = 0; i < changed.size(); i++) {
        if (value) {
            store_value(to.view, changed[i], place[changed[i]], compact.data() + i * row_size);
        } else {
            store_key(to.view, changed[i], place[changed[i]], compact.data() + i * row_size, buffer.data());
        }
    }
}

} // namespace mikv
