// What this x86 processor can run, the operating system's part included (it must save the wide registers).
#pragma once

#include <stdint.h>

#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace mikv {

struct X86Features {
    bool avx2;   // with FMA and F16C
    bool avx512; // F, BW, VL, DQ and VNNI
};

static inline bool x86_cpuid(uint32_t leaf, uint32_t registers[4]) {
#if defined(_MSC_VER)
    int words[4];
    __cpuid(words, 0);
    if (uint32_t(words[0]) < leaf) {
        return false;
    }
    __cpuidex(words, int(leaf), 0);
    for (int i = 0; i < 4; i++) {
        registers[i] = uint32_t(words[i]);
    }
    return true;
#else
    return __get_cpuid_count(leaf, 0, &registers[0], &registers[1], &registers[2], &registers[3]) != 0;
#endif
}

// Which register states the operating system saves. Only where cpuid says OSXSAVE.
static inline uint64_t x86_saved_states() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
#endif
}

static inline X86Features x86_features() {
    enum { eax, ebx, ecx, edx };
    uint32_t       one[4], seven[4];
    const uint32_t fma_osxsave_f16c = 1u << 12 | 1u << 27 | 1u << 29;
    if (!x86_cpuid(1, one) || (one[ecx] & fma_osxsave_f16c) != fma_osxsave_f16c || !x86_cpuid(7, seven)) {
        return {false, false};
    }
    const uint64_t ymm = 0x06, zmm = 0xE6; // SSE and AVX; and opmask and both parts of the 512-bit registers
    const uint64_t saved      = x86_saved_states();
    const bool     avx2       = (saved & ymm) == ymm && (seven[ebx] >> 5 & 1);
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const bool     avx512     = (saved & zmm) == zmm && (seven[ebx] & f_dq_bw_vl) == f_dq_bw_vl && (seven[ecx] >> 11 & 1);
    return {avx2, avx2 && avx512};
}

} // namespace mikv
