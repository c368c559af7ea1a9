// load: one row back to the model's space, in f16.
#pragma once

#include "kernel/gpu/rows.h"

namespace mikv {

MIKV_DEVICE_FN float loaded_number(MIKV_ARGUMENTS LoadArgs & a, int32_t head, int32_t cell, bool value, int32_t i) {
    const MIKV_GLOBAL GpuHead * h     = a.layer.heads + head;
    const int32_t               token = staged_in(a.layer, head, cell);
    const int32_t               place = a.layer.place[int64_t(head) * a.layer.n_kv + cell];
    if (token >= 0) {
        const int64_t row = staged_row(a.layer, head, token);
        return value ? a.staged_v[row * a.layer.dim_v + i] : a.staged_k[row * a.layer.dim_k + i];
    }
    return value ? value_number(h, value_format(h), cell, place, i) : key_number(h, key_format(h), cell, place, i);
}

// A block a row: cell first_cell + x, KV head y; z: 0 its key, 1 its value.
MIKV_DEVICE_FN void load_block(MIKV_ARGUMENTS LoadArgs & a, WorkPlace at, MIKV_SHARED RowShared * s) {
    const bool             value = at.z == 1;
    MIKV_GLOBAL uint16_t * to    = value ? a.v : a.k;
    if (!to) {
        return;
    }
    const int32_t head = int32_t(at.y), stream = head / a.layer.n_head_kv, in_stream = head % a.layer.n_head_kv;
    const int32_t cell = a.first_cell + int32_t(at.x), row = value ? a.layer.dim_v : a.layer.dim_k,
                  dim = value ? a.v_dim : a.k_dim;
    const bool holds  = (a.flags[int64_t(stream) * a.layer.n_cells + cell] & cell_holds) != 0;
    for (int32_t i = int32_t(at.tid); i < row; i += row_threads) {
        s->row[i] = holds ? loaded_number(a, head, cell, value, i) : 0.0f;
    }
    if (a.rotate) {
        rotate_shared(s->row, row, at.tid);
    }
    const MIKV_GLOBAL uint16_t * balancer = a.layer.heads[head].balancer;
    to += value ? stream * a.v_stream + in_stream * a.v_head + int64_t(at.x) * a.v_cell
                : stream * a.k_stream + in_stream * a.k_head + int64_t(at.x) * a.k_cell;
    for (int32_t i = int32_t(at.tid); i < dim; i += row_threads) {
        const float b = balancer && !value ? half_to_float(balancer[i]) : 1.0f;
        to[i]         = half_nearest(clamp_to_half(s->row[i] / b));
    }
}

} // namespace mikv
