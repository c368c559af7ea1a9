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

constexpr int32_t fast_group = 64; // values of a group, where the fast attention knows it

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

// Cells of a tile, by warp: n of each, its part of `cell`.
struct TileList {
    int32_t n[attend_tile / 32];
    uint8_t cell[attend_tile]; // in the tile
};

// Of attend_fast_4 and its like: for up to n_rows rows, a multiple of 4, and heads of up to dim values, a multiple of 64.
template <int n_rows, int dim> struct FastShared {
    FourWords packed[attend_tile * dim / 32]; // keys of the tile, then values: rows of up to 4 bits a value
    uint32_t  q[n_rows * dim / 2];            // [n_rows / 4][groups][4][32] two bytes a value, as products want them
    uint32_t  words[n_rows * dim];            // [groups][2 * n_rows][32] weights of four seats, times range
    float     weight[n_rows * attend_tile];   // dot products, then logits, then weights; by seat
    float     range[attend_tile * dim / 64], low[attend_tile * dim / 64]; // [groups][seats]
    int32_t   place[attend_tile], kept[attend_tile];                      // by seat
    TileList  refined, direct; // packed rows that have a slot; those that are not packed
    float     q_step[n_rows * dim / 64], q_sum[n_rows * dim / 64], q_rounded[n_rows * dim / 64]; // [groups][n_rows]
    float     unit[n_rows * dim / 64], offset[n_rows * dim / 64];                                // [groups][n_rows] of words
    float     mean_dot[n_rows], m[n_rows], l[n_rows], correction[n_rows];
};

using FastShared4 = FastShared<4, 128>;
using FastShared8 = FastShared<8, 128>;
using WideShared4 = FastShared<4, 256>;

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
