// Kernel set "avx512": 16 lanes, 64 codes to a register, dots of bytes by VNNI. avx2.cpp says what each name means.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own <avx512fintrin.h> warns wherever it is used (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "backend/cpu/fast_table.h"
#include "backend/cpu/x86_features.h"

namespace mikv {

namespace {

// Conversions between bytes, integers and floats go by halves, for emulation (SIMDe, tests/native/simde) has no others. Only that of
// load_codes is in an inner loop.
struct Avx512 {
    using F = __m512;
    using I = __m512i;
    using M = uint16_t;
    using B = __m512i;

    static constexpr int width        = 16;
    static constexpr int chunk        = 64;
    static constexpr int accumulators = 24;
    static constexpr int gemm_rows    = 12;

    static F    load(const float * x) { return _mm512_loadu_ps(x); }
    static void store(float * x, F a) { _mm512_storeu_ps(x, a); }
    static F    set(float x) { return _mm512_set1_ps(x); }
    static F    add(F a, F b) { return _mm512_add_ps(a, b); }
    static F    sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F    mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F    div(F a, F b) { return _mm512_div_ps(a, b); }
    static F    fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F    min(F a, F b) { return _mm512_min_ps(a, b); }
    static F    max(F a, F b) { return _mm512_max_ps(a, b); }
    static F    magnitude(F a) { return _mm512_abs_ps(a); }
    static F    round(F a) { return _mm512_roundscale_ps(a, 0x08); }
    static M    less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
    static M    equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
    static F    select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
    static bool any(M m) { return m != 0; }

    static __m256 lower(F a) { return _mm512_castps512_ps256(a); }
    static __m256 upper(F a) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)); }
    static F      pair(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }
    static I      pair(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }
    static I      four(__m128i a, __m128i b, __m128i c, __m128i d) {
        return pair(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1),
                         _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1));
    }

    static float sum(F a) {
        const __m256 half = _mm256_add_ps(lower(a), upper(a));
        __m128       x    = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        x                 = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    static float largest(F a) {
        const __m256 half = _mm256_max_ps(lower(a), upper(a));
        __m128       x    = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        x                 = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }

    static F times_power(F a, F power) { return _mm512_scalef_ps(a, power); }

    static F from_halves(__m256i x) {
        return pair(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
    }
    static F halves(const uint16_t * x) { return from_halves(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x))); }
    static F floats(I a) {
        return pair(_mm256_cvtepi32_ps(_mm512_castsi512_si256(a)), _mm256_cvtepi32_ps(_mm512_extracti64x4_epi64(a, 1)));
    }

    static void params(const uint16_t * p, F & range, F & low) {
        const __m256i both  = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
        const I       place = _mm512_cvtepu16_epi32(_mm256_srli_epi16(both, place_shift));
        range               = from_halves(_mm256_slli_epi16(_mm256_and_si256(both, _mm256_set1_epi16(int16_t(range_mask))), 6));
        low = _mm512_mul_ps(range, _mm512_mul_ps(floats(_mm512_sub_epi32(place, _mm512_set1_epi32(place_of_zero))),
                                                 _mm512_set1_ps(1.0f / 64.0f)));
    }

    static void store_truncated(void * to, F a) {
        const I whole = pair(_mm256_cvttps_epi32(lower(a)), _mm256_cvttps_epi32(upper(a)));
        const I each  = _mm512_shuffle_epi8(whole, _mm512_set1_epi32(0x0C080400)); // the low bytes of four lanes
        const I all   = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), each);
        _mm_storeu_si128(static_cast<__m128i *>(to), _mm512_castsi512_si128(all));
    }

    static uint32_t below(const int32_t * x, int32_t limit) {
        return _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(limit), _mm512_loadu_si512(x));
    }

    static F load_codes(const uint8_t * x) {
        const __m128i some = load_16(x);
        return pair(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(some)),
                    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(some, 8))));
    }

    static B    load_bytes(const void * x) { return _mm512_load_si512(x); }
    static void store_bytes(void * x, B a) { _mm512_store_si512(x, a); }

    // In a group of 32 the upper half of a chunk holds nothing.
    template <int p, int group> static B plane(const uint8_t * x, int) {
        constexpr int stride = group * p / 8;
        B             bits;
        if constexpr (stride == 32) {
            const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x));
            bits              = pair(low, _mm256_srli_epi16(low, p));
        } else if constexpr (stride == 16) {
            const __m128i low = load_16(x);
            bits = _mm512_srlv_epi64(four(low, low, low, low), _mm512_setr_epi64(0, 0, p, p, 2 * p, 2 * p, 3 * p, 3 * p));
        } else if constexpr (stride == 8) {
            int64_t eight;
            memcpy(&eight, x, 8);
            bits =
                _mm512_srlv_epi64(_mm512_set1_epi64(eight), _mm512_setr_epi64(0, p, 2 * p, 3 * p, 4 * p, 5 * p, 6 * p, 7 * p));
        } else {
            bits = _mm512_srlv_epi32(_mm512_set1_epi32(int32_t(load_4(x))),
                                     _mm512_setr_epi32(0, p, 2 * p, 3 * p, 4 * p, 5 * p, 6 * p, 7 * p, 0, 0, 0, 0, 0, 0, 0, 0));
        }
        return _mm512_and_si512(bits, _mm512_set1_epi8((1 << p) - 1));
    }

    // a << n, where no bit leaves its byte
    static B raise(B a, int n) { return _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)); }

    static B join(B high, int n, B low) { return _mm512_or_si512(raise(high, n), low); }

    template <int k> static F byte_floats(B a) {
        const __m128i some = _mm512_extracti32x4_epi32(a, k);
        return pair(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(some)),
                    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(some, 8))));
    }

    // --- lanes of four codes ---

    static I    load_lanes(const void * x) { return _mm512_load_si512(x); }
    static void store_lanes(void * x, I a) { _mm512_store_si512(x, a); }
    static I    add_lanes(I a, I b) { return _mm512_add_epi32(a, b); }
    static I    either(I a, I b) { return _mm512_or_si512(a, b); }
    static I    mask(I a, int bits) { return _mm512_and_si512(a, _mm512_set1_epi8(char(bits))); }

    template <int n> static I shift(I a) {
        if constexpr (n > 0) {
            return _mm512_srli_epi16(a, n);
        } else {
            return n < 0 ? _mm512_slli_epi16(a, -n) : a;
        }
    }

    static I spread(const void * x) { return _mm512_set1_epi32(int32_t(load_4(x))); }

    static constexpr int dot_rows = 4;
    static constexpr int dot_steps(int) { return 1 << 16; }
    static I             no_dots() { return _mm512_setzero_si512(); }
    static I             add_dots(I sum, I codes, I word) { return _mm512_dpbusd_epi32(sum, codes, word); }
    // 254 * high + low
    static I whole_dots(I high, I low) {
        return _mm512_add_epi32(_mm512_sub_epi32(_mm512_slli_epi32(high, 8), _mm512_slli_epi32(high, 1)), low);
    }

    // --- words ---

    static constexpr bool word_products = true;

    static void store_words(int16_t * to, F a) {
        const __m256i each = _mm256_packs_epi32(_mm256_cvtps_epi32(lower(a)), _mm256_cvtps_epi32(upper(a)));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_permute4x64_epi64(each, 0xD8));
    }
    static I pair_codes(const uint8_t * a, const uint8_t * b) {
        const __m128i x = load_16(a), y = load_16(b);
        return pair(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y)));
    }
    static I add_products(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }

    static __m128i load_16(const uint8_t * x) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(x)); }
    static __m128i load_8(const uint8_t * x) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(x)); }

    template <int n_words, class Row> static void load_cells(const Row & row, I * words) {
        if constexpr (n_words == 1) {
            alignas(64) int32_t each[width];
            for (int i = 0; i < width; i++) {
                each[i] = load_4(row(i));
            }
            words[0] = load_lanes(each);
        } else if constexpr (n_words == 2) {
            const auto two  = [&](int i) { return _mm_unpacklo_epi64(load_8(row(i)), load_8(row(i + 1))); };
            const F    even = _mm512_castsi512_ps(four(two(0), two(4), two(8), two(12)));
            const F    odd  = _mm512_castsi512_ps(four(two(2), two(6), two(10), two(14)));
            words[0]        = _mm512_castps_si512(_mm512_shuffle_ps(even, odd, 0x88));
            words[1]        = _mm512_castps_si512(_mm512_shuffle_ps(even, odd, 0xDD));
        } else {
            for (int k = 0; k < n_words; k += 4) {
                I x[4];
                for (int i = 0; i < 4; i++) {
                    x[i] = four(load_16(row(i) + 4 * k), load_16(row(i + 4) + 4 * k), load_16(row(i + 8) + 4 * k),
                                load_16(row(i + 12) + 4 * k));
                }
                const I a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
                const I c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
                words[k]     = _mm512_unpacklo_epi64(a, c);
                words[k + 1] = _mm512_unpackhi_epi64(a, c);
                words[k + 2] = _mm512_unpacklo_epi64(b, d);
                words[k + 3] = _mm512_unpackhi_epi64(b, d);
            }
        }
    }
};

bool runs_here() {
#if defined(MIKV_EMULATE_AVX512)
    return true;
#else
    return x86_features().avx512;
#endif
}

} // namespace

const Kernels avx512_kernels = fast_kernels<Avx512>("avx512", runs_here);

} // namespace mikv
