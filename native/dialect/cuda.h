// The dialect's words for nvcc.
#pragma once

#define MIKV_FN static inline __host__ __device__
#define MIKV_METHOD __host__ __device__
#define MIKV_DEVICE_FN static inline __device__ // a function of GPU kernels
#define MIKV_UNROLL _Pragma("unroll")

#define MIKV_BITCAST(to, value) mikv::bit_cast_to<to>(value)

namespace mikv {

template <class To, class From> MIKV_FN To bit_cast_to(const From & from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

struct WorkPlace {
    uint32_t x, y, z; // block
    uint32_t tid;     // in it
};

constexpr uint32_t warp_size = 32;

MIKV_DEVICE_FN WorkPlace work_place() { return {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x}; }

MIKV_DEVICE_FN void block_sync() { __syncthreads(); }
MIKV_DEVICE_FN void warp_sync() { __syncwarp(); }

template <class T> MIKV_DEVICE_FN T warp_xor(T value, uint32_t mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, int(mask)); }

MIKV_DEVICE_FN float exp_of(float x) { return expf(x); }
MIKV_DEVICE_FN float exp2_of(float x) { return exp2f(x); }
MIKV_DEVICE_FN float sqrt_of(float x) { return sqrtf(x); }
MIKV_FN float        tanh_of(float x) { return tanhf(x); }

// Bytes of words, and a warp's product of bytes: bytes.h says what they are.
MIKV_DEVICE_FN uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) { return __byte_perm(a, b, which); }

MIKV_DEVICE_FN void add_byte_products(uint32_t, int32_t * c, const uint32_t * a, const uint32_t * b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    for (int row = 0; row < 2; row++) {
        for (int part = 0; part < 2; part++) {
            asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                         : "+r"(c[2 * row]), "+r"(c[2 * row + 1])
                         : "r"(a[2 * part + row]), "r"(b[part]));
        }
    }
#else
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

using SharedCount = uint32_t;
MIKV_DEVICE_FN void     count_one(SharedCount * count) { atomicAdd(count, 1u); }
MIKV_DEVICE_FN void     reset_count(SharedCount * count) { *count = 0; }
MIKV_DEVICE_FN uint32_t counted(const SharedCount * count) { return *count; }

} // namespace mikv

// name_block(arguments, place, shared) as a kernel of so many threads a block. 512 of them shall fit a multiprocessor, with 128 registers each;
// 384, with 168, where the memory that they share lets no more in.
#define MIKV_KERNEL(name, Arguments, Shared, n_threads)                                                                        \
    extern "C" __global__ void __launch_bounds__(n_threads,                                                                    \
                                                 sizeof(mikv::Shared) > 24 * 1024 ? 384 / n_threads : 512 / n_threads)         \
        mikv_##name(const __grid_constant__ mikv::Arguments arguments) {                                                       \
        __shared__ mikv::Shared shared;                                                                                        \
        mikv::name##_block(arguments, mikv::work_place(), &shared);                                                            \
    }
