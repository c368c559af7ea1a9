#include "store/staging.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "codec/bitsplit.h"

namespace mikv {

namespace {

// What a thread has widened last: items of one head follow each other.
struct Widened {
    uint64_t           serial = 0;
    int                first = -1, n = 0, head = -1;
    const void *       balancer = nullptr;
    std::vector<float> k, v, row;

    // n rows, `stride` bytes apart, of which the head's values begin at `from`. block: as in RowSource.
    void widen(const char * from, bool half, int block, int n, int64_t stride, const Transform & t, std::vector<float> & to) {
        to.resize(size_t(n) * t.row);
        row.resize(size_t(t.dim));
        for (int i = 0; i < n; i++) {
            float *      out = t.nothing() ? to.data() + size_t(i) * t.row : row.data();
            const char * in  = from + i * stride;
            if (block) {
                std::copy_n(reinterpret_cast<const float *>(in), t.dim, out);
                rotate_blocks(out, t.dim, block);
                in = reinterpret_cast<const char *>(out);
            }
            widen_row(in, half, t.dim, out);
            if (!t.nothing()) {
                enter_row(t, row.data(), to.data() + size_t(i) * t.row);
            }
        }
    }

    // n values, as f16 holds them.
    static void widen_row(const char * from, bool half, int n, float * to) {
        for (int d = 0; d < n && half; d++) {
            to[d] = half_to_float(reinterpret_cast<const uint16_t *>(from)[d]);
        }
        for (int d = 0; d < n && !half; d++) {
            to[d] = half_rounded(clamp_to_half(reinterpret_cast<const float *>(from)[d]));
        }
    }
};

} // namespace

uint64_t Staging::next_serial() {
    static std::atomic<uint64_t> last{0}; // of all stagings: a later one at the same address is another
    return ++last;
}

void Staging::open() { serial_ = next_serial(); }

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

RowSource Staging::own() const {
    return {reinterpret_cast<const char *>(row(false, 0)),
            reinterpret_cast<const char *>(row(true, 0)),
            int64_t(sizeof(uint16_t)) * n_head_ * dim_k_,
            int64_t(sizeof(uint16_t)) * n_head_ * dim_v_,
            true,
            true,
            0,
            0,
            serial_};
}

StagedRows Staging::rows(const RowSource & source, int first, int n, int head, const Transform & k, const Transform & v) const {
    static thread_local Widened w;
    if (w.serial != source.serial || w.first != first || w.n != n || w.head != head || w.balancer != k.balancer) {
        const int64_t k_size = source.k_half ? sizeof(uint16_t) : sizeof(float);
        const int64_t v_size = source.v_half ? sizeof(uint16_t) : sizeof(float);
        w.widen(source.k + first * source.k_bytes + head * dim_k_ * k_size, source.k_half, source.k_block, n, source.k_bytes, k,
                w.k);
        w.widen(source.v + first * source.v_bytes + head * dim_v_ * v_size, source.v_half, source.v_block, n, source.v_bytes, v,
                w.v);
        w.serial   = source.serial;
        w.first    = first;
        w.n        = n;
        w.head     = head;
        w.balancer = k.balancer;
    }
    return {w.k.data(), w.v.data(), k.row, v.row};
}

} // namespace mikv
