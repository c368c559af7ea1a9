// store: one row of the micro-batch into the place that select gave it. One warp; bit-exact (FORMAT.md), so no product and sum may be fused.
#pragma once

#include "kernel/gpu/score.h"

namespace mikv {

// Bytes of a group's planes from its codes, `shift` bits of which are dropped below: the inverse of planes_get, a byte a thread.
MIKV_DEVICE_FN void write_planes(MIKV_GLOBAL uint8_t * bytes, int32_t group, int32_t bits, int32_t shift, uint32_t tid,
                                 const MIKV_SHARED StoreShared * s) {
    while (bits > 0) {
        const int32_t p = plane_bits(bits), stride = group * p / 8;
        bits -= p;
        for (int32_t byte = int32_t(tid); byte < stride; byte += int32_t(warp_size)) {
            uint32_t packed = 0;
            for (int32_t part = 0; part < 8 / p; part++) {
                packed |= ((s->code[byte + part * stride] >> (shift + bits)) & ((1u << p) - 1)) << (p * part);
            }
            bytes[byte] = uint8_t(packed);
        }
        bytes += stride;
    }
}

// One group of the shared row. refinement may be null.
MIKV_DEVICE_FN uint16_t store_group(RowFormat f, int32_t group, MIKV_GLOBAL uint8_t * base, MIKV_GLOBAL uint8_t * refinement,
                                    uint32_t tid, MIKV_SHARED StoreShared * s) {
    const MIKV_SHARED float * x  = s->row + group * f.group;
    float                     lo = clamp_to_half(x[tid]), hi = lo;
    for (int32_t i = int32_t(tid); i < f.group; i += int32_t(warp_size)) {
        const float value = clamp_to_half(x[i]);
        lo                = value < lo ? value : lo;
        hi                = value > hi ? value : hi;
    }
    const uint16_t params = params_of(warp_min(lo), warp_max(hi), f.end_point_bits());
    const float    range = params_range(params), min = params_min(params);
    const float    per_range = range > 0.0f ? 256.0f / range : 0.0f;
    for (int32_t i = int32_t(tid); i < f.group; i += int32_t(warp_size)) {
        s->code[i] = value_code(x[i], min, per_range);
    }
    block_sync();
    write_planes(base + group * (f.group * f.bits / 8), f.group, f.bits, 8 - f.bits, tid, s);
    if (refinement) {
        write_planes(refinement + group * (f.group * f.extra_bits() / 8), f.group, f.extra_bits(), 8 - f.refined_bits, tid, s);
    }
    block_sync();
    return params;
}

// What is stored of a value, or of a key less its mean.
MIKV_DEVICE_FN void store_packed(const MIKV_GLOBAL GpuHead * h, int32_t cell, int32_t place, bool value, uint32_t tid,
                                 MIKV_SHARED StoreShared * s) {
    const RowFormat              f          = value ? value_format(h) : key_format(h);
    MIKV_GLOBAL uint8_t *        base       = (value ? h->view.v_base : h->view.k_base) + int64_t(cell) * f.base_bytes();
    MIKV_GLOBAL uint8_t *        refined    = value ? h->view.v_refined : h->view.k_refined;
    MIKV_GLOBAL uint8_t *        none       = nullptr;
    MIKV_GLOBAL uint8_t *        refinement = place >= 0 ? refined + int64_t(place) * f.refinement_bytes() : none;
    MIKV_GLOBAL uint16_t *       params     = value ? h->view.v_params : h->view.k_params;
    const MIKV_GLOBAL uint16_t * mean       = h->view.k_mean + int64_t(cell / block_cells) * h->view.k.dim;
    for (int32_t i = int32_t(tid); i < f.dim && !value; i += int32_t(warp_size)) {
        s->row[i] -= half_to_float(mean[i]);
    }
    block_sync();
    for (int32_t g = 0; g < f.n_groups(); g++) {
        const uint16_t packed = store_group(f, g, base, refinement, tid, s);
        if (tid == 0) {
            params[int64_t(g) * h->view.n_cells + cell] = packed;
        }
    }
}

// A block a row: token x, KV head y; z: 0 its key, 1 its value.
MIKV_DEVICE_FN void store_block(MIKV_ARGUMENTS CommitArgs & a, WorkPlace at, MIKV_SHARED StoreShared * s) {
    const int32_t               token = int32_t(at.x), head = int32_t(at.y), cell = cell_of(a, head, token);
    const bool                  value = at.z == 1;
    const MIKV_GLOBAL GpuHead * h     = a.layer.heads + head;
    const int32_t               place = a.token_place[int64_t(head) * a.layer.n_tokens + token];
    const int32_t               dim   = value ? h->view.v.dim : h->view.k.dim;
    const MIKV_GLOBAL float *   from  = (value ? a.staged_v : a.staged_k) + staged_row(a.layer, head, token) * dim;
    if (place < gpu_place_base) {
        MIKV_GLOBAL uint16_t * exact = (value ? h->view.v_exact : h->view.k_exact) + int64_t(-2 - place) * dim;
        for (int32_t i = int32_t(at.tid); i < dim; i += int32_t(warp_size)) {
            exact[i] = half_nearest(clamp_to_half(from[i]));
        }
        return;
    }
    for (int32_t i = int32_t(at.tid); i < dim; i += int32_t(warp_size)) {
        s->row[i] = from[i];
    }
    store_packed(h, cell, place, value, at.tid, s);
}

} // namespace mikv
