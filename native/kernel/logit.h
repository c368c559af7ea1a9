// From a dot product to a logit: soft-capping, mask and ALiBi.
#pragma once

#include "codec/half.h"

namespace mikv {

constexpr float masked_logit = -3.0e38f; // finite on purpose: infinities and fast math do not mix

// mask: f16, minus infinity where the query does not see the cell. softcap 0: none.
MIKV_FN float logit_of(float dot, uint16_t mask, float softcap, float slope) {
    const float bias = half_to_float(mask);
    if (bias < -half_max) {
        return masked_logit;
    }
    return (softcap > 0.0f ? softcap * tanh_of(dot / softcap) : dot) + slope * bias;
}

} // namespace mikv
