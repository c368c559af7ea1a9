// What happens to rows between the model's space and the cache's own: k' = H(b k), q' = H(q / b), v' = H(v), all of them padded. Scores do not
// change, and attention's output comes back through H, its own inverse. Kernels see the cache's space and nothing else.
// In place of the factors b a head's keys may have their channels in another order, or be turned into a basis; queries then go the same way.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mikv {

enum class Balance { off, largest, damped, salience, range, basis, alike };

constexpr bool is_order(Balance b) { return b == Balance::salience || b == Balance::range; }
// Values of 16 bits that a head keeps of it: f16 factors or channels [dim], or a basis f32 [dim][dim].
constexpr int balancer_size(Balance b, int dim) { return b == Balance::off ? 0 : b == Balance::basis ? 2 * dim * dim : dim; }

// Values that a row of head_dim values takes in the cache: groups are of 32 or 64.
constexpr int row_dim(int head_dim) { return (head_dim + 31) / 32 * 32; }

struct Transform {
    int              dim;      // of a row in the model
    int              row;      // of a row in the cache: row_dim(dim), the rest zero before the rotation
    bool             rotated;  // by H
    const uint16_t * balancer; // as balance says, or null: keys are as they are
    Balance          balance = Balance::largest;
    int              lead    = 0; // channels in front that are rotated on their own, so that they stay apart from the rest

    bool nothing() const { return dim == row && !rotated && !balancer; }
};

// H: orthonormal Walsh-Hadamard blocks, the largest powers of two that fit one after another (96 = 64 + 32). In place.
void rotate(float * x, int n);
// The same in blocks of one size, a power of two that divides n, as llama.cpp rotates.
void rotate_blocks(float * x, int n, int block);

// in: [dim]; out: [row], the same memory or none of it.
void enter_row(const Transform & t, const float * in, float * out);   // a key or a value
void enter_query(const Transform & t, const float * in, float * out); // what meets a key
// in: [row], changed on the way; out: [dim]. The inverse of enter_row.
void leave_row(const Transform & t, float * in, float * out);
// The same for values summed up by attention, times a factor; in is not changed.
void leave_output(const Transform & t, const float * in, float factor, float * out);

// What a channel of the keys and of the queries that meet them reaches.
struct Reach {
    float * q; // [dim]
    float * k;
};
// Takes rows [dim] into the reach of each channel: the largest magnitude, or (damped) the sum of squares.
void add_reach(Balance balance, const float * row, int dim, float * reach);
// The channel balancer of MiKV (arXiv 2402.18096, equations 2 to 4), f16 [dim]: b = sqrt(max |q| / max |k|) of each channel. Damped: the ratio
// of root mean squares to the power 0.2, over its geometric mean, and 1 for all channels if none is 1.2 times off their mean, up or down.
// n_q, n_k: rows taken in.
void make_balancer(Balance balance, const Reach & reach, int64_t n_q, int64_t n_k, int dim, uint16_t * balancer);

} // namespace mikv
