// What the threads of a block share, by kernel, and how many threads and cells a block has.
#pragma once

#include "kernel/gpu/arguments.h"

namespace mikv {

constexpr int32_t begin_threads  = 256;
constexpr int32_t index_threads  = 256;
constexpr int32_t index_blocks   = 8; // of each head, however many slots it has
constexpr int32_t row_threads    = 128;
constexpr int32_t attend_threads = 128;
constexpr int32_t attend_tile    = 128; // cells that a block scores at a time: one a thread
constexpr int32_t score_threads  = 256;
constexpr int32_t select_threads = 512;
constexpr int32_t mean_threads   = 128;
constexpr int32_t most_warps     = 16;

struct NothingShared {
    int32_t unused;
};

// One value of each warp, on the way to the sum or the extreme of a block.
struct Exchange {
    int32_t whole[most_warps];
    float   real[most_warps];
};

struct RecentShared {
    Exchange exchange;
};

struct RowShared {
    float row[largest_dim];
};

template <int n_rows> struct AttendShared {
    float   q[n_rows * largest_dim];
    float   weight[n_rows * attend_tile]; // logits, then weights
    float   m[n_rows], l[n_rows], correction[n_rows];
    int32_t seen[attend_tile]; // by any of the rows
};

struct ScoreShared {
    Exchange exchange;
};

struct SelectShared {
    Exchange    exchange;
    SharedCount bin[256];
    int32_t     sixteenth[16];
    int32_t     digit, above; // of the last row that keeps its place: its digit, how many have a larger one
};

struct MeanShared {
    Exchange exchange;
};

struct StoreShared {
    float    row[largest_dim];
    uint32_t code[64];
};

} // namespace mikv
