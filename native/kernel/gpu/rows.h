// Rows of a KV head as one thread sees them, value by value.
#pragma once

#include "codec/params.h"
#include "codec/planes.h"
#include "kernel/gpu/block.h"

namespace mikv {

MIKV_DEVICE_FN RowFormat key_format(const MIKV_GLOBAL GpuHead * h) {
    return RowFormat{h->view.k.dim, h->view.k.group, h->view.k.bits, h->view.k.refined_bits, h->view.k.end_points};
}
MIKV_DEVICE_FN RowFormat value_format(const MIKV_GLOBAL GpuHead * h) {
    return RowFormat{h->view.v.dim, h->view.v.group, h->view.v.bits, h->view.v.refined_bits, h->view.v.end_points};
}

// The bytes of one quantized row.
struct PackedRow {
    const MIKV_GLOBAL uint16_t * params; // of group 0; the others n_cells apart
    const MIKV_GLOBAL uint8_t *  base;
    const MIKV_GLOBAL uint8_t *  refinement; // null: there is none
    int64_t                      n_cells;
};

MIKV_DEVICE_FN PackedRow packed_key(const MIKV_GLOBAL GpuHead * h, RowFormat f, int32_t cell, int32_t place) {
    const MIKV_GLOBAL uint8_t * none = nullptr;
    return PackedRow{h->view.k_params + cell, h->view.k_base + int64_t(cell) * f.base_bytes(),
                     place >= 0 ? h->view.k_refined + int64_t(place) * f.refinement_bytes() : none, h->view.n_cells};
}
MIKV_DEVICE_FN PackedRow packed_value(const MIKV_GLOBAL GpuHead * h, RowFormat f, int32_t cell, int32_t place) {
    const MIKV_GLOBAL uint8_t * none = nullptr;
    return PackedRow{h->view.v_params + cell, h->view.v_base + int64_t(cell) * f.base_bytes(),
                     place >= 0 ? h->view.v_refined + int64_t(place) * f.refinement_bytes() : none, h->view.n_cells};
}

// How codes of a group are read back: min + (code + 0.5) * step.
struct Scale {
    float min, step;
};

MIKV_DEVICE_FN Scale scale_of(RowFormat f, PackedRow row, int32_t group) {
    const uint16_t params = row.params[group * row.n_cells];
    return Scale{params_min(params), params_range(params) / float(1 << (row.refinement ? f.refined_bits : f.bits))};
}

// Value i of a group: its code, as precise as the row is.
MIKV_DEVICE_FN uint32_t code_of(RowFormat f, PackedRow row, int32_t group, int32_t i) {
    const int32_t extra = f.extra_bits();
    uint32_t      code  = planes_get(row.base + group * (f.group * f.bits / 8), f.group, f.bits, i);
    if (row.refinement) {
        code = (code << extra) | planes_get(row.refinement + group * (f.group * extra / 8), f.group, extra, i);
    }
    return code;
}

MIKV_DEVICE_FN float read_back(Scale scale, uint32_t code) { return scale.min + (float(code) + 0.5f) * scale.step; }

MIKV_DEVICE_FN float packed_number(RowFormat f, PackedRow row, int32_t i) {
    const int32_t group = i / f.group;
    return read_back(scale_of(f, row, group), code_of(f, row, group, i % f.group));
}

// Value i of a committed key, mean added, and of a committed value.
MIKV_DEVICE_FN float key_number(const MIKV_GLOBAL GpuHead * h, RowFormat f, int32_t cell, int32_t place, int32_t i) {
    if (place < gpu_place_base) {
        return half_to_float(h->view.k_exact[int64_t(-2 - place) * f.dim + i]);
    }
    return packed_number(f, packed_key(h, f, cell, place), i) +
           half_to_float(h->view.k_mean[int64_t(cell / block_cells) * f.dim + i]);
}
MIKV_DEVICE_FN float value_number(const MIKV_GLOBAL GpuHead * h, RowFormat f, int32_t cell, int32_t place, int32_t i) {
    if (place < gpu_place_base) {
        return half_to_float(h->view.v_exact[int64_t(-2 - place) * f.dim + i]);
    }
    return packed_number(f, packed_value(h, f, cell, place), i);
}

// Token of the micro-batch that waits in a cell, or -1.
MIKV_DEVICE_FN int32_t staged_in(MIKV_ARGUMENTS LayerArgs & a, int32_t head, int32_t cell) {
    return a.staged ? a.staged[int64_t(head / a.n_head_kv) * a.n_cells + cell] : -1;
}
// Where the row of a token begins, in rows: [n_stream][n_tokens][n_head_kv].
MIKV_DEVICE_FN int64_t staged_row(MIKV_ARGUMENTS LayerArgs & a, int32_t head, int32_t token) {
    return (int64_t(head / a.n_head_kv) * a.n_tokens + token) * a.n_head_kv + head % a.n_head_kv;
}

// H, in place: Walsh-Hadamard blocks of the largest powers of two that fit one after another. All threads of the block; x is written before, with
// no barrier needed, and may be read after.
MIKV_DEVICE_FN void rotate_shared(MIKV_SHARED float * x, int32_t n, uint32_t tid) {
    int32_t first = 0;
    while (first < n) {
        int32_t size = 1;
        while (2 * size <= n - first) {
            size *= 2;
        }
        for (int32_t half = 1; half < size; half *= 2) {
            block_sync();
            for (int32_t pair = int32_t(tid); pair < size / 2; pair += row_threads) {
                const int32_t i = first + pair / half * 2 * half + pair % half;
                const float   a = x[i], b = x[i + half];
                x[i]        = a + b;
                x[i + half] = a - b;
            }
        }
        const float scale = 1.0f / sqrt_of(float(size));
        block_sync();
        for (int32_t i = int32_t(tid); i < size; i += row_threads) {
            x[first + i] *= scale;
        }
        first += size;
    }
    block_sync();
}

} // namespace mikv
