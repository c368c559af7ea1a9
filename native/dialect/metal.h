// The dialect's words for Metal's compiler. The text that it compiles is one file, made of the headers in order (scripts/metal_text.py).
#pragma once

#include <metal_stdlib>

#define constexpr constexpr constant // constants of a program live in an address space of their own

#define MIKV_LOCAL thread
#define MIKV_GLOBAL device
#define MIKV_SHARED threadgroup
#define MIKV_ARGUMENTS constant
#define MIKV_FN static inline
#define MIKV_METHOD
#define MIKV_DEVICE_FN static inline
#define MIKV_UNROLL _Pragma("clang loop unroll(full)")
#define MIKV_BITCAST(to, value) as_type<to>(value)

namespace mikv {

using namespace metal;
using FourWords = uint4;

struct WorkPlace {
    uint32_t x, y, z; // block
    uint32_t tid;     // in it
};

constexpr uint32_t warp_size = 32; // of all of Apple's GPUs

MIKV_DEVICE_FN void block_sync() { threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device); }
MIKV_DEVICE_FN void warp_sync() { simdgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device); }

template <class T> MIKV_DEVICE_FN T warp_xor(T value, uint32_t mask) { return simd_shuffle_xor(value, ushort(mask)); }

MIKV_DEVICE_FN float exp_of(float x) { return exp(x); }
MIKV_DEVICE_FN float exp2_of(float x) { return exp2(x); }
MIKV_DEVICE_FN float sqrt_of(float x) { return sqrt(x); }
MIKV_FN float        tanh_of(float x) { return precise::tanh(x); }

} // namespace mikv

#include "dialect/bytes.h"

namespace mikv {

struct ShuffledWords { // of the lanes of a warp
    uint32_t own[6];
    uint32_t word(uint32_t lane, int i) const { return simd_shuffle(own[i], ushort(lane)); }
};
// Metal multiplies no matrices of bytes: the lanes ask each other.
MIKV_DEVICE_FN void add_byte_products(uint32_t lane, thread int32_t * c, const thread uint32_t * a, const thread uint32_t * b) {
    add_products_of(ShuffledWords{{a[0], a[1], a[2], a[3], b[0], b[1]}}, lane, c);
}

using SharedCount = atomic_uint;
MIKV_DEVICE_FN void count_one(threadgroup SharedCount * count) { atomic_fetch_add_explicit(count, 1u, memory_order_relaxed); }
MIKV_DEVICE_FN void reset_count(threadgroup SharedCount * count) { atomic_store_explicit(count, 0u, memory_order_relaxed); }
MIKV_DEVICE_FN uint32_t counted(threadgroup SharedCount * count) { return atomic_load_explicit(count, memory_order_relaxed); }

} // namespace mikv

#define MIKV_KERNEL(name, Arguments, Shared, n_threads)                                                                        \
    kernel void mikv_##name(constant mikv::Arguments & arguments [[buffer(0)]], uint3 block [[threadgroup_position_in_grid]],  \
                            uint thread_in_block [[thread_index_in_threadgroup]]) {                                            \
        threadgroup uint4 shared[(sizeof(mikv::Shared) + 15) / 16];                                                            \
        mikv::name##_block(arguments, mikv::WorkPlace{block.x, block.y, block.z, thread_in_block},                             \
                           (threadgroup mikv::Shared *)shared);                                                                \
    }
