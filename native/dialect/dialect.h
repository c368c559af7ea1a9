// The one place that knows compilers. The codec and the work items use this vocabulary and a C++14 subset (no lambdas, virtuals,
// exceptions, doubles or library calls), so that other compilers of the C++ family can take the same text.
//
// The second half is the vocabulary of GPU kernels (kernel/gpu/), which four compilers read: nvcc, Metal's, and the host's for the emulator of
// GPU execution (MIKV_EMULATED_GPU); a host file that only wants the argument structs sees the words for address spaces and no others.
#pragma once

#if defined(__METAL_VERSION__)
#include "dialect/metal.h"
#else

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#define MIKV_CPU_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#define MIKV_CPU_NEON 1
#endif

#include <math.h>

#define MIKV_LOCAL           // of a thread's own variables
#define MIKV_GLOBAL          // address space of cache memory
#define MIKV_SHARED          // of memory that the threads of a block share
#define MIKV_ARGUMENTS const // of a kernel's arguments, which it takes by reference

namespace mikv {
struct alignas(16) FourWords { // read and written at once
    uint32_t x, y, z, w;
};
} // namespace mikv

#if defined(__CUDACC__)
#include "dialect/cuda.h"
#else

#define MIKV_FN static inline
#define MIKV_METHOD // before a member function

namespace mikv {

MIKV_FN float tanh_of(float x) { return tanhf(x); }
using SharedCount = uint32_t; // GPUs count with atomic operations

} // namespace mikv

#if defined(__GNUC__) || defined(__clang__)
#define MIKV_BITCAST(to, value) __builtin_bit_cast(to, value)
#else
#include <string.h>
template <class To, class From> static inline To mikv_bitcast(const From & from) {
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
#define MIKV_BITCAST(to, value) mikv_bitcast<to>(value)
#endif

#if defined(MIKV_EMULATED_GPU)
#include "dialect/emulated.h"
#endif

#endif
#endif
