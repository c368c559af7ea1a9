// Kernel set "avx2": 8 lanes, 32 codes to a register, dots of bytes by maddubs.
#include <immintrin.h>

#include "backend/cpu/fast_table.h"
#include "backend/cpu/x86_features.h"

namespace mikv {

namespace {

// What the fast kernels ask of an instruction set. Everything in this file stays in this file: code that other files could
// share must not hold these instructions.
struct Avx2 {
    using F = __m256;  // `width` floats
    using I = __m256i; // as many int32
    using M = __m256;  // a choice for each
    using B = __m256i; // `chunk` bytes

    static constexpr int width        = 8;
    static constexpr int chunk        = 32;
    static constexpr int accumulators = 12; // of a product's block, so that its factors fit the registers too
    static constexpr int gemm_rows    = 6;

    static F    load(const float * x) { return _mm256_loadu_ps(x); }
    static void store(float * x, F a) { _mm256_storeu_ps(x, a); }
    static F    set(float x) { return _mm256_set1_ps(x); }
    static F    add(F a, F b) { return _mm256_add_ps(a, b); }
    static F    sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F    mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F    div(F a, F b) { return _mm256_div_ps(a, b); }
    static F    fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); } // a * b + c
    static F    min(F a, F b) { return _mm256_min_ps(a, b); }           // b where either is NaN
    static F    max(F a, F b) { return _mm256_max_ps(a, b); }
    static F    magnitude(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
    static F    round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static M    less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
    static M    equal(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
    static F    select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
    static bool any(M m) { return _mm256_movemask_ps(m) != 0; }

    static float sum(F a) {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x        = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    static float largest(F a) {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x        = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }

    // a * 2^power for a power that is a whole number and a result that is a normal number
    static F times_power(F a, F power) {
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23)));
    }

    static F halves(const uint16_t * x) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x))); }
    static F floats(I a) { return _mm256_cvtepi32_ps(a); }

    // params of `width` neighbouring cells
    static void params(const uint16_t * p, F & range, F & low) {
        const __m128i both  = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
        const __m256i place = _mm256_cvtepu16_epi32(_mm_srli_epi16(both, place_shift));
        range               = _mm256_cvtph_ps(_mm_slli_epi16(_mm_and_si128(both, _mm_set1_epi16(int16_t(range_mask))), 6));
        low = _mm256_mul_ps(range, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(place, _mm256_set1_epi32(place_of_zero))),
                                                 _mm256_set1_ps(1.0f / 64.0f)));
    }

    // The low bytes of the numbers, rounded towards zero.
    static void store_truncated(void * to, F a) {
        const __m256i low  = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1,
                                              -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
        const __m256i each = _mm256_shuffle_epi8(_mm256_cvttps_epi32(a), low);
        _mm_storel_epi64(static_cast<__m128i *>(to),
                         _mm_unpacklo_epi32(_mm256_castsi256_si128(each), _mm256_extracti128_si256(each, 1)));
    }

    // Bit i: x[i] < limit.
    static uint32_t below(const int32_t * x, int32_t limit) {
        const __m256i less =
            _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)));
        return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(less)));
    }

    // `width` bytes as floats
    static F load_codes(const uint8_t * x) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8(x))); }

    static B    load_bytes(const void * x) { return _mm256_load_si256(static_cast<const __m256i *>(x)); }
    static void store_bytes(void * x, B a) { _mm256_store_si256(static_cast<__m256i *>(x), a); }

    // Values [32 * j, 32 * j + 32) of a plane of p bits.
    template <int p, int group> static B plane(const uint8_t * x, int j) {
        constexpr int stride = group * p / 8;
        const B       mask   = _mm256_set1_epi8((1 << p) - 1);
        B             bits;
        if constexpr (stride == 32) {
            bits = _mm256_srl_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)), _mm_cvtsi32_si128(p * j));
        } else if constexpr (stride == 16) {
            const B each  = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x)));
            const B first = _mm256_setr_epi64x(0, 0, p, p);
            bits          = _mm256_srlv_epi64(each, _mm256_add_epi64(first, _mm256_set1_epi64x(2 * p * j)));
        } else if constexpr (stride == 8) {
            int64_t eight;
            memcpy(&eight, x, 8);
            const B first = _mm256_setr_epi64x(0, p, 2 * p, 3 * p);
            bits = _mm256_srlv_epi64(_mm256_set1_epi64x(eight), _mm256_add_epi64(first, _mm256_set1_epi64x(4 * p * j)));
        } else {
            bits = _mm256_srlv_epi32(_mm256_set1_epi32(int32_t(load_4(x))),
                                     _mm256_setr_epi32(0, p, 2 * p, 3 * p, 4 * p, 5 * p, 6 * p, 7 * p));
        }
        return _mm256_and_si256(bits, mask);
    }

    // a << n, where no bit leaves its byte
    static B raise(B a, int n) { return _mm256_sll_epi16(a, _mm_cvtsi32_si128(n)); }

    // high << n | low, where no bit leaves its byte
    static B join(B high, int n, B low) { return _mm256_or_si256(raise(high, n), low); }

    // The k-th `width` of the bytes as floats.
    template <int k> static F byte_floats(B a) {
        const __m128i half = k < 2 ? _mm256_castsi256_si128(a) : _mm256_extracti128_si256(a, 1);
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(k % 2 ? _mm_srli_si128(half, 8) : half));
    }

    // --- lanes of four codes: see fast_dots.h ---

    static I    load_lanes(const void * x) { return _mm256_load_si256(static_cast<const __m256i *>(x)); }
    static void store_lanes(void * x, I a) { _mm256_store_si256(static_cast<__m256i *>(x), a); }
    static I    add_lanes(I a, I b) { return _mm256_add_epi32(a, b); }
    static I    either(I a, I b) { return _mm256_or_si256(a, b); }
    static I    mask(I a, int bits) { return _mm256_and_si256(a, _mm256_set1_epi8(char(bits))); }

    // Bits to the right, to the left where n < 0; they may leave their byte.
    template <int n> static I shift(I a) {
        if constexpr (n > 0) {
            return _mm256_srli_epi16(a, n);
        } else {
            return n < 0 ? _mm256_slli_epi16(a, -n) : a;
        }
    }

    // Four int8, or two int16, in every lane.
    static I spread(const void * x) { return _mm256_set1_epi32(int32_t(load_4(x))); }

    // Sums of dots: pairs of 16 bits, which hold so many of them.
    static constexpr int dot_rows = 3; // of two planes and two vectors each
    static constexpr int dot_steps(int most) { return 32767 / (2 * 127 * most); }
    static I             no_dots() { return _mm256_setzero_si256(); }
    static I add_dots(I sum, I codes, I word) { return held(_mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, word))); }
    // 254 * high + low
    static I whole_dots(I high, I low) {
        return _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(254)), _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
    }

    // A sum, each step of which GCC is kept from putting off: it would run out of registers.
    static I held(I sum) {
#if defined(__GNUC__)
        __asm__("" : "+x"(sum));
#endif
        return sum;
    }

    // --- words: see fast_weighted.h ---

    static constexpr bool word_products = true;

    // `width` whole numbers, rounded to nearest.
    static void store_words(int16_t * to, F a) {
        const __m256i each = _mm256_cvtps_epi32(a);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to),
                         _mm_packs_epi32(_mm256_castsi256_si128(each), _mm256_extracti128_si256(each, 1)));
    }

    // Lane i: a[i], b[i].
    static I pair_codes(const uint8_t * a, const uint8_t * b) {
        return _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(load_8(a), load_8(b)));
    }
    static I add_products(I sum, I a, I b) { return held(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b))); }

    static __m128i load_16(const uint8_t * x) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(x)); }
    static __m128i load_8(const uint8_t * x) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(x)); }
    static I       pair(__m128i low, __m128i high) { return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1); }

    // words[k], lane i: bytes 4 * k .. 4 * k + 4 of row(i).
    template <int n_words, class Row> static void load_cells(const Row & row, I * words) {
        if constexpr (n_words == 1) {
            words[0] = _mm256_setr_epi32(load_4(row(0)), load_4(row(1)), load_4(row(2)), load_4(row(3)), load_4(row(4)),
                                         load_4(row(5)), load_4(row(6)), load_4(row(7)));
        } else if constexpr (n_words == 2) {
            const __m128i a   = _mm_unpacklo_epi64(load_8(row(0)), load_8(row(1))),
                          b   = _mm_unpacklo_epi64(load_8(row(2)), load_8(row(3)));
            const __m128i c   = _mm_unpacklo_epi64(load_8(row(4)), load_8(row(5))),
                          d   = _mm_unpacklo_epi64(load_8(row(6)), load_8(row(7)));
            const __m256 even = _mm256_castsi256_ps(pair(a, c)), odd = _mm256_castsi256_ps(pair(b, d));
            words[0] = _mm256_castps_si256(_mm256_shuffle_ps(even, odd, 0x88));
            words[1] = _mm256_castps_si256(_mm256_shuffle_ps(even, odd, 0xDD));
        } else {
            for (int k = 0; k < n_words; k += 4) {
                I x[4];
                for (int i = 0; i < 4; i++) {
                    x[i] = pair(load_16(row(i) + 4 * k), load_16(row(i + 4) + 4 * k));
                }
                const I a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
                const I c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
                words[k]     = _mm256_unpacklo_epi64(a, c);
                words[k + 1] = _mm256_unpackhi_epi64(a, c);
                words[k + 2] = _mm256_unpacklo_epi64(b, d);
                words[k + 3] = _mm256_unpackhi_epi64(b, d);
            }
        }
    }
};

bool runs_here() { return x86_features().avx2; }

} // namespace

const Kernels avx2_kernels = fast_kernels<Avx2>("avx2", runs_here);

} // namespace mikv
