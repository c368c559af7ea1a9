// The rows that kernel sets are compared on: every format, and values that are hard to encode.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "format/row.h"

namespace mikv {

// Deterministic on every machine, unlike the distributions of <random>.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

    uint32_t bits() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return uint32_t(state_ >> 32);
    }
    int   below(int n) { return int(bits() % uint32_t(n)); }
    float uniform() { return float(bits() >> 8) / 16777216.0f; } // [0, 1)
    float normal() {                                             // nearly: mean 0, variance 1
        float sum = -6.0f;
        for (int i = 0; i < 12; i++) {
            sum += uniform();
        }
        return sum;
    }

private:
    uint64_t state_;
};

inline std::vector<RowFormat> all_formats() {
    std::vector<RowFormat> formats;
    for (int dim : {32, 64, 96, 128, 160, 192, 256, 512}) {
        for (int group : {32, 64}) {
            for (int bits : {2, 3, 4}) {
                for (int refined_bits : {2, 3, 4, 5, 6, 8}) {
                    for (int end_points : {0, 1}) {
                        if (dim % group == 0 && refined_bits >= bits) {
                            formats.push_back({dim, group, bits, refined_bits, end_points});
                        }
                    }
                }
            }
        }
    }
    return formats;
}

// Rows whose leading groups have bits of their own. No GPU kernel knows them.
inline std::vector<RowFormat> leading_formats() {
    std::vector<RowFormat> formats;
    for (int dim : {64, 96, 256}) {
        for (int bits : {0, 2, 3}) {
            for (int refined_bits : {4, 5, 8}) {
                for (int lead_bits : {2, 4}) {
                    for (int n_lead : {1, dim / 32 - 1, dim / 32}) {
                        formats.push_back({dim, 32, bits, refined_bits, lead_bits == 2, n_lead, lead_bits});
                    }
                }
            }
        }
    }
    return formats;
}

struct RowPattern {
    const char * name;
    float (*value)(Random & random, int i);

    std::vector<float> make(int dim) const {
        Random             random(uint64_t(dim) * 31 + uint64_t(name[0]));
        std::vector<float> row(dim);
        for (int i = 0; i < dim; i++) {
            row[i] = value(random, i);
        }
        return row;
    }
};

const RowPattern row_patterns[] = {
    {"normal", [](Random & r, int) { return r.normal(); }},
    {"zeros", [](Random &, int) { return 0.0f; }},
    {"constant", [](Random &, int) { return -3.3f; }},
    {"far from zero", [](Random & r, int) { return 350.0f + 1.4f * r.normal(); }},
    {"one outlier", [](Random & r, int i) { return i == 17 ? 4096.0f : 0.01f * r.normal(); }},
    {"subnormal range", [](Random & r, int) { return 1.0f + 3e-5f * r.uniform(); }},
    {"range at the limit", [](Random &, int i) { return i % 2 ? 6.103515625e-05f : 0.0f; }},
    {"tiny", [](Random & r, int) { return 1e-30f * r.normal(); }},
    {"beyond f16", [](Random & r, int) { return 1e6f * r.normal(); }},
    {"whole f16", [](Random &, int i) { return i % 2 ? 65504.0f : -65504.0f; }},
    {"on bin borders", [](Random &, int i) { return float(i % 33) / 32.0f; }},
    {"not finite",
     [](Random & r, int i) {
         const float inf = std::numeric_limits<float>::infinity();
         return i == 3 ? inf : i == 9 ? -inf : i == 20 ? std::numeric_limits<float>::quiet_NaN() : r.normal();
     }},
    {"negative zero", [](Random &, int i) { return i % 3 ? -0.0f : 0.0f; }},
};

} // namespace mikv
