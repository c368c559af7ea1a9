// What a head settles on besides MiKV's balancer: an order of its channels, a basis for its keys, or factors that make its channels alike.
#pragma once

#include <cstdint>
#include <vector>

#include "store/transform.h"

namespace mikv {

// A head's keys and the queries that meet them, in the model's space: rows [n][dim].
struct Sample {
    int                dim;
    std::vector<float> q, k;
};

// The head's channels, u16 [dim], by salience A = mean |q| * (max k - min k), the largest first (MixKVQ, arXiv 2512.19206: importance times
// sensitivity); Balance::range: by max k - min k alone. Channels that are not finite come last.
void make_order(Balance balance, const Sample & sample, uint16_t * order);

// Factors f16 [dim] that give all channels one range: 1 / (max k - min k), times the geometric mean of the ranges; 1 where a channel has none.
void make_alike(const Sample & sample, uint16_t * factors);

// Principal axes of the keys about their mean, f32 [dim][dim]: axis 0 has the largest variance. Each axis's largest component is positive. Rows
// that are not finite do not count.
void make_basis(const Sample & sample, float * basis);

} // namespace mikv
