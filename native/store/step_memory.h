// Working memory of a step.
#pragma once

#include "store/step.h"

namespace mikv {

inline size_t padded(size_t n) { return (n + 15) / 16 * 16; }

// Memory of one thread for query rows, at a multiple of 64 bytes.
float * query_buffer(size_t n_floats);

// All in floats, each array padded.
struct Step::Scratch {
    int32_t * place;   // [n_heads][n_columns]
    int32_t * waiting; // [n_heads][n_columns], as CellIndex::staged, where that is not the table's
    float *   mass;    // [n_heads][n_columns]
    float *   most;    // [n_heads][n_columns], or the sum of squares; nothing if the policy reads neither
    float *   m;       // [n_stream][n_head][n_tokens]: final
    float *   l;
    float *   weights; // few: [n_heads][rows][n_columns]
    float *   part_m;  // few: [n_heads][n_chunks][rows]
    float *   part_l;
    float *   part_acc; // few: [n_heads][n_chunks][rows][head_dim_v]
    size_t    size_bytes;
};

} // namespace mikv
