#include "store/staging.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "codec/bitsplit.h"

namespace mikv {

namespace {

// What a thread has widened last: items of one head follow each other.
struct Widened {
    const Staging *    of     = nullptr;
    uint64_t           serial = 0;
    int                first = -1, n = 0, head = -1;
    const void *       balancer = nullptr;
    std::vector<float> k, v, row;

    // n rows of f16, `stride` values apart.
    void widen(const uint16_t * from, int n, size_t stride, const Transform & t, std::vector<float> & to) {
        to.resize(size_t(n) * t.row);
        row.resize(size_t(t.dim));
        for (int i = 0; i < n; i++) {
            float * out = t.nothing() ? to.data() + size_t(i) * t.row : row.data();
            for (int d = 0; d < t.dim; d++) {
                out[d] = half_to_float(from[i * stride + d]);
            }
            if (!t.nothing()) {
                enter_row(t, row.data(), to.data() + size_t(i) * t.row);
            }
        }
    }
};

} // namespace

void Staging::open() {
    static std::atomic<uint64_t> last{0}; // of all stagings: a later one at the same address is another
    serial_ = ++last;
}

bool Staging::reserve(int n_tokens) {
    if (n_tokens <= n_tokens_) {
        return true;
    }
    if (!memory_.allocate(bytes(n_tokens, n_head_, dim_k_, dim_v_))) {
        return false;
    }
    n_tokens_ = n_tokens;
    return true;
}

uint16_t * Staging::row(bool value, int i) const {
    uint16_t * base = reinterpret_cast<uint16_t *>(memory_.data());
    return value ? base + (size_t(n_tokens_) * dim_k_ + size_t(i) * dim_v_) * n_head_ : base + size_t(i) * dim_k_ * n_head_;
}

void Staging::put(bool value, int i, const float * from) {
    uint16_t * to = row(value, i);
    for (int d = 0; d < n_head_ * (value ? dim_v_ : dim_k_); d++) {
        to[d] = half_nearest(clamp_to_half(from[d]));
    }
}

void Staging::put(bool value, int i, const uint16_t * from) {
    std::memcpy(row(value, i), from, sizeof(uint16_t) * n_head_ * size_t(value ? dim_v_ : dim_k_));
}

StagedRows Staging::rows(int first, int n, int head, const Transform & k, const Transform & v) const {
    static thread_local Widened w;
    if (w.of != this || w.serial != serial_ || w.first != first || w.n != n || w.head != head || w.balancer != k.balancer) {
        w.widen(row(false, first) + head * dim_k_, n, size_t(n_head_) * dim_k_, k, w.k);
        w.widen(row(true, first) + head * dim_v_, n, size_t(n_head_) * dim_v_, v, w.v);
        w.of       = this;
        w.serial   = serial_;
        w.first    = first;
        w.n        = n;
        w.head     = head;
        w.balancer = k.balancer;
    }
    return {w.k.data(), w.v.data(), k.row, v.row};
}

} // namespace mikv
