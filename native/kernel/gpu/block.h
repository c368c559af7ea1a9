// Sums, extremes and ranks over the threads of a warp and of a block. All threads of the warp or block take part; all get the result.
#pragma once

#include "kernel/gpu/shared.h"

namespace mikv {

template <class T> MIKV_DEVICE_FN T warp_sum(T value) {
    for (uint32_t mask = warp_size / 2; mask > 0; mask /= 2) {
        value += warp_xor(value, mask);
    }
    return value;
}

MIKV_DEVICE_FN float warp_max(float value) {
    for (uint32_t mask = warp_size / 2; mask > 0; mask /= 2) {
        const float other = warp_xor(value, mask);
        value             = other > value ? other : value;
    }
    return value;
}

MIKV_DEVICE_FN float warp_min(float value) { return -warp_max(-value); }

// n_threads: of the block, a multiple of 32. The exchange is free again when the call returns.
MIKV_DEVICE_FN int32_t block_sum(int32_t value, uint32_t tid, int32_t n_threads, MIKV_SHARED Exchange * exchange) {
    value = warp_sum(value);
    if (tid % warp_size == 0) {
        exchange->whole[tid / warp_size] = value;
    }
    block_sync();
    int32_t sum = 0;
    for (int32_t warp = 0; warp < n_threads / int32_t(warp_size); warp++) {
        sum += exchange->whole[warp];
    }
    block_sync();
    return sum;
}

MIKV_DEVICE_FN float block_sum(float value, uint32_t tid, int32_t n_threads, MIKV_SHARED Exchange * exchange) {
    value = warp_sum(value);
    if (tid % warp_size == 0) {
        exchange->real[tid / warp_size] = value;
    }
    block_sync();
    float sum = 0.0f;
    for (int32_t warp = 0; warp < n_threads / int32_t(warp_size); warp++) {
        sum += exchange->real[warp];
    }
    block_sync();
    return sum;
}

MIKV_DEVICE_FN int32_t block_least(int32_t value, uint32_t tid, int32_t n_threads, MIKV_SHARED Exchange * exchange) {
    for (uint32_t mask = warp_size / 2; mask > 0; mask /= 2) {
        const int32_t other = warp_xor(value, mask);
        value               = other < value ? other : value;
    }
    if (tid % warp_size == 0) {
        exchange->whole[tid / warp_size] = value;
    }
    block_sync();
    for (int32_t warp = 0; warp < n_threads / int32_t(warp_size); warp++) {
        value = exchange->whole[warp] < value ? exchange->whole[warp] : value;
    }
    block_sync();
    return value;
}

struct Rank {
    int32_t before; // flagged threads with a lower number
    int32_t all;    // flagged threads
};

// In the warp alone.
MIKV_DEVICE_FN Rank warp_rank(bool flagged, uint32_t tid) {
    Rank rank = {0, flagged ? 1 : 0};
    for (uint32_t mask = 1; mask < warp_size; mask *= 2) {
        const int32_t other = warp_xor(rank.all, mask);
        rank.before += (tid & mask) ? other : 0;
        rank.all += other;
    }
    return rank;
}

MIKV_DEVICE_FN Rank block_rank(bool flagged, uint32_t tid, int32_t n_threads, MIKV_SHARED Exchange * exchange) {
    const Rank in_warp = warp_rank(flagged, tid);
    if (tid % warp_size == 0) {
        exchange->whole[tid / warp_size] = in_warp.all;
    }
    block_sync();
    Rank rank = {in_warp.before, 0};
    for (int32_t warp = 0; warp < n_threads / int32_t(warp_size); warp++) {
        rank.before += warp < int32_t(tid / warp_size) ? exchange->whole[warp] : 0;
        rank.all += exchange->whole[warp];
    }
    block_sync();
    return rank;
}

} // namespace mikv
