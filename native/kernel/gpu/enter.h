// enter: one head's part of a token's keys, values or queries into the cache's space.
#pragma once

#include "kernel/gpu/rows.h"

namespace mikv {

// Number of the KV head whose balancer applies, or null.
MIKV_DEVICE_FN const MIKV_GLOBAL uint16_t * balancer_of(MIKV_ARGUMENTS EnterArgs & a, WorkPlace at) {
    const MIKV_GLOBAL uint16_t * none = nullptr;
    return a.heads ? a.heads[int32_t(at.z) * (a.n_heads / a.group) + int32_t(at.x) / a.group].balancer : none;
}

// Value i as the model gives it; keys and values as f16 holds them.
MIKV_DEVICE_FN float entering(MIKV_ARGUMENTS EnterArgs & a, const MIKV_GLOBAL uint8_t * in, int32_t i) {
    if (a.half) {
        return half_to_float(((const MIKV_GLOBAL uint16_t *)in)[i]);
    }
    const float x = ((const MIKV_GLOBAL float *)in)[i];
    return a.query ? x : half_to_float(half_nearest(clamp_to_half(x)));
}

// A block a row: head x, token y, stream z.
MIKV_DEVICE_FN void enter_block(MIKV_ARGUMENTS EnterArgs & a, WorkPlace at, MIKV_SHARED RowShared * s) {
    const int64_t                head = at.x, token = at.y, stream = at.z;
    const MIKV_GLOBAL uint8_t *  in       = a.in + stream * a.stream_bytes + token * a.token_bytes + head * a.head_bytes;
    const MIKV_GLOBAL uint16_t * balancer = balancer_of(a, at);
    for (int32_t i = int32_t(at.tid); i < a.row; i += row_threads) {
        float x = 0.0f;
        if (i < a.dim) {
            const float b = balancer ? half_to_float(balancer[i]) : 1.0f;
            x             = entering(a, in, i);
            x             = a.query ? x / b : x * b;
        }
        s->row[i] = x;
    }
    if (a.rotate) {
        rotate_shared(s->row, a.row, at.tid);
    }
    const int64_t row =
        a.query ? (stream * a.n_heads + head) * a.n_tokens + token : (stream * a.n_tokens + token) * a.n_heads + head;
    for (int32_t i = int32_t(at.tid); i < a.row; i += row_threads) {
        a.out[row * a.row + i] = a.query ? s->row[i] * a.scale : s->row[i];
    }
}

} // namespace mikv
