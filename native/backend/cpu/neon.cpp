// Kernel set "neon": 4 lanes, 16 codes to a register, dots of bytes by the dot product extension. avx2.cpp says what each name
// means.
#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

#include "backend/cpu/fast_table.h"

namespace mikv {

namespace {

struct Neon {
    using F = float32x4_t;
    using I = int32x4_t;
    using M = uint32x4_t;
    using B = uint8x16_t;

    static constexpr int width        = 4;
    static constexpr int chunk        = 16;
    static constexpr int accumulators = 24;
    static constexpr int gemm_rows    = 6;

    static F    load(const float * x) { return vld1q_f32(x); }
    static void store(float * x, F a) { vst1q_f32(x, a); }
    static F    set(float x) { return vdupq_n_f32(x); }
    static F    add(F a, F b) { return vaddq_f32(a, b); }
    static F    sub(F a, F b) { return vsubq_f32(a, b); }
    static F    mul(F a, F b) { return vmulq_f32(a, b); }
    static F    div(F a, F b) { return vdivq_f32(a, b); }
    static F    fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F    min(F a, F b) { return vminq_f32(a, b); }
    static F    max(F a, F b) { return vmaxq_f32(a, b); }
    static F    magnitude(F a) { return vabsq_f32(a); }
    static F    round(F a) { return vrndnq_f32(a); }
    static M    less(F a, F b) { return vcltq_f32(a, b); }
    static M    equal(F a, F b) { return vceqq_f32(a, b); }
    static F    select(M m, F yes, F no) { return vbslq_f32(m, yes, no); }
    static bool any(M m) { return vmaxvq_u32(m) != 0; }

    static float sum(F a) { return vaddvq_f32(a); }
    static float largest(F a) { return vmaxvq_f32(a); }

    static F times_power(F a, F power) {
        return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vcvtnq_s32_f32(power), 23)));
    }

    static F halves(const uint16_t * x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }
    static F floats(I a) { return vcvtq_f32_s32(a); }

    static void params(const uint16_t * p, F & range, F & low) {
        const uint16x4_t both  = vld1_u16(p);
        const int32x4_t  place = vreinterpretq_s32_u32(vmovl_u16(vshr_n_u16(both, place_shift)));
        range = vcvt_f32_f16(vreinterpret_f16_u16(vshl_n_u16(vand_u16(both, vdup_n_u16(uint16_t(range_mask))), 6)));
        low   = vmulq_f32(range, vmulq_n_f32(vcvtq_f32_s32(vsubq_s32(place, vdupq_n_s32(place_of_zero))), 1.0f / 64.0f));
    }

    static void store_truncated(void * to, F a) {
        const int16x4_t words = vmovn_s32(vcvtq_s32_f32(a));
        const uint32_t  bytes = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
        memcpy(to, &bytes, 4);
    }

    static uint32_t below(const int32_t * x, int32_t limit) {
        const uint32_t bits[4] = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(vcltq_s32(vld1q_s32(x), vdupq_n_s32(limit)), vld1q_u32(bits)));
    }

    static F load_codes(const uint8_t * x) { return byte_floats<0>(vreinterpretq_u8_u32(vdupq_n_u32(load_4(x)))); }

    static B    load_bytes(const void * x) { return vld1q_u8(static_cast<const uint8_t *>(x)); }
    static void store_bytes(void * x, B a) { vst1q_u8(static_cast<uint8_t *>(x), a); }

    template <int p, int group> static B plane(const uint8_t * x, int j) {
        constexpr int stride = group * p / 8;
        B             bytes;
        int8x16_t     right;
        if constexpr (stride >= 16) {
            bytes = vld1q_u8(x + chunk * j % stride);
            right = vdupq_n_s8(int8_t(p * (chunk * j / stride)));
        } else if constexpr (stride == 8) {
            bytes = vcombine_u8(vld1_u8(x), vld1_u8(x));
            right = vcombine_s8(vdup_n_s8(int8_t(2 * p * j)), vdup_n_s8(int8_t(2 * p * j + p)));
        } else {
            const int8_t each[16] = {0, 0, 0, 0, p, p, p, p, 2 * p, 2 * p, 2 * p, 2 * p, 3 * p, 3 * p, 3 * p, 3 * p};
            bytes                 = vreinterpretq_u8_u32(vdupq_n_u32(load_4(x)));
            right                 = vaddq_s8(vld1q_s8(each), vdupq_n_s8(int8_t(4 * p * j)));
        }
        return vandq_u8(vshlq_u8(bytes, vnegq_s8(right)), vdupq_n_u8((1 << p) - 1));
    }

    static B raise(B a, int n) { return vshlq_u8(a, vdupq_n_s8(int8_t(n))); } // a << n
    static B join(B high, int n, B low) { return vorrq_u8(raise(high, n), low); }

    template <int k> static F byte_floats(B a) {
        const uint16x8_t half = k < 2 ? vmovl_u8(vget_low_u8(a)) : vmovl_u8(vget_high_u8(a));
        return vcvtq_f32_u32(vmovl_u16(k % 2 ? vget_high_u16(half) : vget_low_u16(half)));
    }

    // --- lanes of four codes ---

    static I    load_lanes(const void * x) { return vld1q_s32(static_cast<const int32_t *>(x)); }
    static void store_lanes(void * x, I a) { vst1q_s32(static_cast<int32_t *>(x), a); }
    static I    add_lanes(I a, I b) { return vaddq_s32(a, b); }
    static I    either(I a, I b) { return vorrq_s32(a, b); }
    static I    mask(I a, int bits) { return vandq_s32(a, vreinterpretq_s32_u8(vdupq_n_u8(uint8_t(bits)))); }

    template <int n> static I shift(I a) {
        if constexpr (n > 0) {
            return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a), n));
        } else if constexpr (n < 0) {
            return vreinterpretq_s32_u8(vshlq_n_u8(vreinterpretq_u8_s32(a), -n));
        } else {
            return a;
        }
    }

    static I spread(const void * x) { return vdupq_n_s32(int32_t(load_4(x))); }

    static constexpr int dot_rows = 4;
    static constexpr int dot_steps(int) { return 1 << 16; }
    static I             no_dots() { return vdupq_n_s32(0); }
    static I             add_dots(I sum, I codes, I word) {
        return vdotq_s32(sum, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(word));
    }
    static I whole_dots(I high, I low) { return vmlaq_n_s32(low, high, 254); } // 254 * high + low

    static constexpr bool word_products = false; // four of them at a time, as of floats

    template <int n_words, class Row> static void load_cells(const Row & row, I * words) {
        if constexpr (n_words == 1) {
            const uint32_t each[4] = {load_4(row(0)), load_4(row(1)), load_4(row(2)), load_4(row(3))};
            words[0]               = vreinterpretq_s32_u32(vld1q_u32(each));
        } else if constexpr (n_words == 2) {
            const I a = vreinterpretq_s32_u8(vcombine_u8(vld1_u8(row(0)), vld1_u8(row(1))));
            const I b = vreinterpretq_s32_u8(vcombine_u8(vld1_u8(row(2)), vld1_u8(row(3))));
            words[0]  = vuzp1q_s32(a, b);
            words[1]  = vuzp2q_s32(a, b);
        } else {
            for (int k = 0; k < n_words; k += 4) {
                I x[4];
                for (int i = 0; i < 4; i++) {
                    x[i] = vreinterpretq_s32_u8(vld1q_u8(row(i) + 4 * k));
                }
                const int64x2_t a = vreinterpretq_s64_s32(vtrn1q_s32(x[0], x[1])),
                                b = vreinterpretq_s64_s32(vtrn2q_s32(x[0], x[1]));
                const int64x2_t c = vreinterpretq_s64_s32(vtrn1q_s32(x[2], x[3])),
                                d = vreinterpretq_s64_s32(vtrn2q_s32(x[2], x[3]));
                words[k]          = vreinterpretq_s32_s64(vtrn1q_s64(a, c));
                words[k + 1]      = vreinterpretq_s32_s64(vtrn1q_s64(b, d));
                words[k + 2]      = vreinterpretq_s32_s64(vtrn2q_s64(a, c));
                words[k + 3]      = vreinterpretq_s32_s64(vtrn2q_s64(b, d));
            }
        }
    }
};

bool runs_here() {
#if defined(__linux__)
    const unsigned long fphp_asimdhp_asimddp = 1ul << 9 | 1ul << 10 | 1ul << 20; // bits of AT_HWCAP
    return (getauxval(AT_HWCAP) & fphp_asimdhp_asimddp) == fphp_asimdhp_asimddp;
#elif defined(__APPLE__)
    int    has  = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has;
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(43) != 0; // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
#else
    return false;
#endif
}

} // namespace

const Kernels neon_kernels = fast_kernels<Neon>("neon", runs_here);

} // namespace mikv
