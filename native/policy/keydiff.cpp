#include <cmath>

#include "policy/policy.h"

namespace mikv {

// One minus the cosine of the angle between key and mean key: 0 .. 2.
float first_keydiff(const float * key, const float * mean, int dim) {
    float product = 0.0f, key_square = 0.0f, mean_square = 0.0f;
    for (int i = 0; i < dim; i++) {
        product += key[i] * mean[i];
        key_square += key[i] * key[i];
        mean_square += mean[i] * mean[i];
    }
    const float norms = std::sqrt(key_square) * std::sqrt(mean_square);
    return norms > 0.0f ? 1.0f - product / norms : 1.0f;
}

} // namespace mikv
