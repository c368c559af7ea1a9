#include <algorithm>
#include <cmath>

#include "policy/policy.h"

namespace mikv {

float expected_logit(const float * key, const float * sum, const float * sum_of_squares, double n, int dim) {
    double logit = 0.0;
    for (int i = 0; i < dim; i++) {
        const double mean = sum[i] / n, variance = std::max(0.0, sum_of_squares[i] / n - mean * mean);
        logit += mean * key[i] + 0.5 * variance * key[i] * key[i];
    }
    return n > 0.0 ? float(logit) : 0.0f;
}

void rank_expected(void *, const mikv_policy_query * query, float * priority) {
    const float most = query->n > 0 ? *std::max_element(query->mass, query->mass + query->n) : 0.0f;
    for (int i = 0; i < query->n; i++) {
        priority[i] = std::exp(query->mass[i] - most); // a common factor changes no order, and this one overflows nowhere
    }
}

} // namespace mikv
