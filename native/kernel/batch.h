// The arguments that attention work items share: what one KV head of one stream sees of a micro-batch.
#pragma once

#include "format/head.h"
#include "kernel/logit.h"

namespace mikv {

// Where each cell's row is to be read. Built once per micro-batch and head by index_cells(). Of a pool, "cells" here and in all kernels are
// its rows, and behind them the micro-batch's own, which wait: of a tile of 64 that sees none but f16 and waiting rows, the base is not read.
struct CellIndex {
    const int32_t * place;  // [n_kv]: >= 0 refinement slot; place_base; or -2 - e: exact row e
    const int32_t * staged; // [n_kv]: row of the micro-batch that waits in the cell, or -1; shared by heads and layers
};
constexpr int32_t place_base = -1;

// Query rows of one KV head: head-major, row = head_in_group * n_tokens + token.
struct QueryRows {
    const float *    q;           // [n_rows][k.dim], scale already applied
    const float *    slope;       // [n_rows / n_tokens]: ALiBi slope of each query head of the group (1 without ALiBi)
    const uint16_t * mask;        // f16: mask of token t at mask + t * mask_stride, n_kv values
    int64_t          mask_stride; // values
    int              n_rows;
    int              n_tokens;
    float            softcap; // 0: none
};

// Rows of the micro-batch, exact. Row i of this head at k + i * k_stride.
struct StagedRows {
    const float * k;
    const float * v;
    int64_t       k_stride; // values
    int64_t       v_stride;
};

// Softmax sums over the cells [first, last), unnormalised, so that parts can be merged:
// m = largest logit, l = sum of exp(logit - m), acc = sum of exp(logit - m) * value. A row that saw nothing: m = masked_logit, l = 0.
struct Partial {
    float * m;   // [n_rows]
    float * l;   // [n_rows]
    float * acc; // [n_rows][v.dim]
};

} // namespace mikv
