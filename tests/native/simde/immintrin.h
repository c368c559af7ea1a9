// Stands in for the compiler's <immintrin.h> where MIKV_EMULATE_AVX512 is set: AVX-512 by SIMDe's portable C, so that the very text
// of avx512.cpp runs on machines without these instructions.
#pragma once

#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
