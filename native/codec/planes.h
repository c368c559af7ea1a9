// n-bit numbers of one group as planes of 4, 2 and 1 bits, most significant first (FORMAT.md, "Planes").
#pragma once

#include "dialect/dialect.h"

namespace mikv {

// The widest plane that fits n bits.
MIKV_FN int plane_bits(int n) { return n >= 4 ? 4 : n >= 2 ? 2 : 1; }

// Adds value v of a group: n bits of `code`. The group's n * group / 8 bytes must have been zero before the first value.
MIKV_FN void planes_put(MIKV_GLOBAL uint8_t * bytes, int group, int n, int v, uint32_t code) {
    while (n > 0) {
        const int p      = plane_bits(n);
        const int stride = group * p / 8;
        n -= p;
        bytes[v % stride] |= uint8_t(((code >> n) & ((1u << p) - 1)) << (p * (v / stride)));
        bytes += stride;
    }
}

MIKV_FN uint32_t planes_get(const MIKV_GLOBAL uint8_t * bytes, int group, int n, int v) {
    uint32_t code = 0;
    while (n > 0) {
        const int p      = plane_bits(n);
        const int stride = group * p / 8;
        code             = (code << p) | ((uint32_t(bytes[v % stride]) >> (p * (v / stride))) & ((1u << p) - 1));
        bytes += stride;
        n -= p;
    }
    return code;
}

} // namespace mikv
