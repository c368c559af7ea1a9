// Kernel set neon.
#include "backend/cpu/kernels.h"

namespace mikv {

namespace {

bool runs_here() { return false; }

void encode_row(const RowFormat & f, const float * row, uint32_t * params, int64_t stride, uint8_t * base, uint8_t * refinement) {
    plain_kernels.encode_row(f, row, params, stride, base, refinement);
}

void decode_row(const RowFormat & f, const uint32_t * params, int64_t stride, const uint8_t * base, const uint8_t * refinement,
                float * row) {
    plain_kernels.decode_row(f, params, stride, base, refinement, row);
}

void score(const HeadView & h, const CellIndex & i, const StagedRows & s, const QueryRows & r, int first, int last, float * logits,
           int64_t stride) {
    plain_kernels.score(h, i, s, r, first, last, logits, stride);
}

void attend_few(const HeadView & h, const CellIndex & i, const StagedRows & s, const QueryRows & r, int first, int last,
                float * weights, int64_t stride, const Partial & out) {
    plain_kernels.attend_few(h, i, s, r, first, last, weights, stride, out);
}

void attend_many(const HeadView & h, const CellIndex & i, const StagedRows & s, const QueryRows & r, int first, int last,
                 const Partial & out) {
    plain_kernels.attend_many(h, i, s, r, first, last, out);
}

void weigh(float * x, float m, int n) { plain_kernels.weigh(x, m, n); }

void add_scaled(const float * w, float factor, int n, float * sums) { plain_kernels.add_scaled(w, factor, n, sums); }

} // namespace

const Kernels neon_kernels = {"neon", runs_here, encode_row, decode_row, score, attend_few, attend_many, weigh, add_scaled};

} // namespace mikv
