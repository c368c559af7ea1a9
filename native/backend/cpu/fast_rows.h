// store and load of rows: the codec of codec/bitsplit.h, bit for bit, a vector at a time.
#pragma once

#include "backend/cpu/fast_math.h"
#include "codec/bitsplit.h"
#include "format/lead.h"

namespace mikv {

// Values [chunk * j, chunk * (j + 1)) of a group of n-bit numbers, one to a byte.
template <class Isa, int group, int n> static inline typename Isa::B group_codes(const uint8_t * x, int j) {
    constexpr int p    = n >= 4 ? 4 : n >= 2 ? 2 : 1;
    const auto    high = Isa::template plane<p, group>(x, j);
    if constexpr (n > p) {
        return Isa::join(high, n - p, group_codes<Isa, group, n - p>(x + group * p / 8, j));
    } else {
        return high;
    }
}

template <class Isa, int group> static inline typename Isa::B group_codes(int n, const uint8_t * x, int j) {
    switch (n) {
    case 1:
        return group_codes<Isa, group, 1>(x, j);
    case 2:
        return group_codes<Isa, group, 2>(x, j);
    case 3:
        return group_codes<Isa, group, 3>(x, j);
    case 4:
        return group_codes<Isa, group, 4>(x, j);
    case 5:
        return group_codes<Isa, group, 5>(x, j);
    case 6:
        return group_codes<Isa, group, 6>(x, j);
    default:
        return group_codes<Isa, group, 8>(x, j);
    }
}

template <class Isa, int group> constexpr int chunks_of() { return (group + Isa::chunk - 1) / Isa::chunk; }

// Codes of one group of a row, refinement included unless null: put(d, codes) for each vector of values from d on.
template <class Isa, int group, class Put>
static inline void each_code(const RowFormat & f, const uint8_t * base, const uint8_t * refinement, const Put & put) {
    for (int j = 0; j < chunks_of<Isa, group>(); j++) {
        typename Isa::B codes = group_codes<Isa, group>(f.bits, base, j);
        if (refinement) {
            codes = Isa::join(codes, f.extra_bits(), group_codes<Isa, group>(f.extra_bits(), refinement, j));
        }
        constexpr int some = group < Isa::chunk ? group : Isa::chunk;
        each_below<some / Isa::width>(
            [&](auto k) { put(j * Isa::chunk + k.value * Isa::width, Isa::template byte_floats<k.value>(codes)); });
    }
}

template <class Isa, int group>
static void decode_groups(const RowFormat & f, const uint16_t * params, int64_t params_stride, const uint8_t * base,
                          const uint8_t * refinement, float * row) {
    using F         = typename Isa::F;
    const int extra = refinement ? f.extra_bits() : 0;
    const int n     = f.bits + extra;
    for (int g = 0; g < f.dim / group; g++) {
        const uint16_t p    = params[g * params_stride];
        const F        step = Isa::set(params_range(p) / float(1 << n)), low = Isa::set(params_min(p)), half = Isa::set(0.5f);
        each_code<Isa, group>(f, base + g * (group / 8) * f.bits, extra ? refinement + g * (group / 8) * extra : nullptr,
                              [&](int d, F code) {
                                  // no fma: the same number as plain
                                  Isa::store(row + g * group + d, Isa::add(low, Isa::mul(Isa::add(code, half), step)));
                              });
    }
}

// A base of no bits: the refinement is all there is, or the middle of each group's range.
template <class Isa>
static void decode_without_base(const RowFormat & f, const uint16_t * params, int64_t params_stride, float * row) {
    for (int g = 0; g < f.n_groups(); g++) {
        const uint16_t p      = params[g * params_stride];
        const auto     middle = Isa::add(Isa::set(params_min(p)), Isa::mul(Isa::set(0.5f), Isa::set(params_range(p))));
        for (int i = 0; i < f.group; i += Isa::width) {
            Isa::store(row + g * f.group + i, middle);
        }
    }
}

template <class Isa>
static void decode_row(const RowFormat & f, const uint16_t * params, int64_t params_stride, const uint8_t * base,
                       const uint8_t * refinement, float * row) {
    if (f.n_lead) {
        const RowFormat lead = lead_format(f);
        decode_row<Isa>(lead, params, params_stride, base, refinement, row);
        decode_row<Isa>(rest_format(f), params + f.n_lead * params_stride, params_stride, base + lead.base_bytes(),
                        refinement ? refinement + lead.refinement_bytes() : nullptr, row + lead.dim);
    } else if (f.bits == 0 && !(refinement && f.refined_bits)) {
        decode_without_base<Isa>(f, params, params_stride, row);
    } else if (f.bits == 0) {
        decode_row<Isa>({f.dim, f.group, f.refined_bits, f.refined_bits}, params, params_stride, refinement, nullptr, row);
    } else if (f.group == 64) {
        decode_groups<Isa, 64>(f, params, params_stride, base, refinement, row);
    } else {
        decode_groups<Isa, 32>(f, params, params_stride, base, refinement, row);
    }
}

template <class Isa> static inline typename Isa::F clamped(typename Isa::F x) {
    using F       = typename Isa::F;
    const F limit = Isa::set(half_max), zero = Isa::set(0.0f);
    return Isa::select(Isa::equal(x, x), Isa::min(Isa::max(x, Isa::sub(zero, limit)), limit), zero);
}

// As group_params of the codec.
template <class Isa> static inline uint16_t fast_group_params(const float * x, int group, int end_point_bits) {
    using F = typename Isa::F;
    F low = clamped<Isa>(Isa::load(x)), high = low;
    for (int i = Isa::width; i < group; i += Isa::width) {
        const F value = clamped<Isa>(Isa::load(x + i));
        low           = Isa::min(low, value);
        high          = Isa::max(high, value);
    }
    const float lo = -Isa::largest(Isa::sub(Isa::set(0.0f), low));
    const float hi = Isa::largest(high);
    return params_of(lo, hi, end_point_bits);
}

// The planes of n-bit numbers, bits [shift, shift + n) of the codes: eight bytes of a plane at a time, four where it has no
// more.
template <class Word> static inline void put_plane(const uint8_t * codes, int group, int p, int shift, uint8_t * to) {
    const int  stride = group * p / 8;
    const Word mask   = Word(0x0101010101010101u) * Word((1 << p) - 1);
    for (int at = 0; at < stride; at += int(sizeof(Word))) {
        Word bits = 0;
        for (int i = 0; i < 8 / p; i++) {
            Word some;
            memcpy(&some, codes + i * stride + at, sizeof(Word));
            bits |= ((some >> shift) & mask) << (p * i);
        }
        memcpy(to + at, &bits, sizeof(Word));
    }
}

static inline void put_planes(const uint8_t * codes, int group, int n, int shift, uint8_t * to) {
    while (n > 0) {
        const int p = plane_bits(n);
        n -= p;
        if (group * p / 8 >= 8) {
            put_plane<uint64_t>(codes, group, p, shift + n, to);
        } else {
            put_plane<uint32_t>(codes, group, p, shift + n, to);
        }
        to += group * p / 8;
    }
}

template <class Isa>
static void encode_row(const RowFormat & f, const float * row, uint16_t * params, int64_t params_stride, uint8_t * base,
                       uint8_t * refinement) {
    using F = typename Isa::F;
    if (f.n_lead) {
        const RowFormat lead = lead_format(f);
        encode_row<Isa>(lead, row, params, params_stride, base, refinement);
        encode_row<Isa>(rest_format(f), row + lead.dim, params + f.n_lead * params_stride, params_stride,
                        base + lead.base_bytes(), refinement ? refinement + lead.refinement_bytes() : nullptr);
        return;
    }
    uint8_t codes[64];
    for (int g = 0; g < f.n_groups(); g++) {
        const float *  x         = row + g * f.group;
        const uint16_t p         = fast_group_params<Isa>(x, f.group, f.end_point_bits());
        const float    range     = params_range(p);
        const F        low       = Isa::set(params_min(p));
        const F        per_range = Isa::set(range > 0.0f ? 256.0f / range : 0.0f);
        for (int i = 0; i < f.group; i += Isa::width) {
            const F scaled = Isa::mul(Isa::sub(clamped<Isa>(Isa::load(x + i)), low), per_range);
            Isa::store_truncated(codes + i, Isa::min(Isa::max(scaled, Isa::set(0.0f)), Isa::set(255.0f)));
        }
        params[g * params_stride] = p;
        put_planes(codes, f.group, f.bits, 8 - f.bits, base + g * (f.group * f.bits / 8));
        if (refinement) {
            put_planes(codes, f.group, f.extra_bits(), 8 - f.refined_bits, refinement + g * (f.group * f.extra_bits() / 8));
        }
    }
}

} // namespace mikv
