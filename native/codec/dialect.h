// The one place that knows compilers. The codec and the work items use this vocabulary and a C++14 subset (no lambdas, virtuals,
// exceptions, doubles or library calls), so that other compilers of the C++ family can take the same text.
#pragma once

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#define MIKV_CPU_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#define MIKV_CPU_NEON 1
#endif

#define MIKV_FN static inline
#define MIKV_GLOBAL // address space of cache memory

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
