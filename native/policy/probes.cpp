#include <algorithm>
#include <numeric>

#include "policy/policy.h"

namespace mikv {

namespace {

int count_of(const Probes & probes, int number, int n) { return probes.percent ? (number * n + 99) / 100 : number; }

uint32_t drawn_hash(uint32_t token, uint32_t now) {
    uint32_t h = token * 2654435761u + now * 2246822519u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    return h;
}

} // namespace

std::vector<int> probe_tokens(const Probes & probes, int n, uint32_t now) {
    const int n_before = n - std::min(n, count_of(probes, probes.recent, n));
    const int n_spread = std::min(n_before, count_of(probes, probes.spread, n));

    std::vector<int> tokens(static_cast<size_t>(probes.drawn ? n_before : n_spread));
    if (probes.drawn) {
        std::iota(tokens.begin(), tokens.end(), 0);
        const auto first = [&](int a, int b) { return drawn_hash(uint32_t(a), now) < drawn_hash(uint32_t(b), now); };
        std::stable_sort(tokens.begin(), tokens.end(), first);
        tokens.resize(size_t(n_spread));
        std::sort(tokens.begin(), tokens.end());
    }
    for (int i = 0; i < n_spread && !probes.drawn; i++) {
        tokens[i] = int(int64_t(n_before) * i / n_spread);
    }
    for (int t = n_before; t < n; t++) {
        tokens.push_back(t);
    }
    return tokens;
}

} // namespace mikv
