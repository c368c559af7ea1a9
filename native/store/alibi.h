// Attention with linear biases (Press et al., arXiv 2108.12409).
#pragma once

#include <cmath>

namespace mikv {

// Slope of a query head; 1 without such biases.
inline float alibi_slope(float max_bias, int n_head, int head) {
    if (max_bias <= 0.0f) {
        return 1.0f;
    }
    const int   n    = 1 << int(std::floor(std::log2(double(n_head))));
    const float base = std::pow(2.0f, -max_bias / float(n));
    return head < n ? std::pow(base, float(head + 1))
                    : std::pow(std::pow(2.0f, -max_bias / 2.0f / float(n)), float(2 * (head - n) + 1));
}

} // namespace mikv
