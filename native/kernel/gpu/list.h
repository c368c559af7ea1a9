// Every GPU kernel: name, arguments, what a block shares, threads of a block. One list for all that compile, launch or name them.
#pragma once

// clang-format off

// What the format fixes to the bit, or f16 to its last place: products and sums are not fused, and no fast math.
#define MIKV_EXACT_KERNELS(kernel)                          \
    kernel(enter, EnterArgs, RowShared, 128)                \
    kernel(load, LoadArgs, RowShared, 128)                  \
    kernel(mean, CommitArgs, MeanShared, 128)               \
    kernel(store, CommitArgs, StoreShared, 32)

#define MIKV_LOOSE_KERNELS(kernel)                          \
    kernel(begin_cells, BeginArgs, NothingShared, 256)      \
    kernel(begin_tokens, BeginArgs, NothingShared, 256)     \
    kernel(begin_recent, BeginArgs, RecentShared, 256)      \
    kernel(index_clear, LayerArgs, NothingShared, 256)      \
    kernel(index_place, LayerArgs, NothingShared, 256)      \
    kernel(attend_1, AttendArgs, AttendShared<1>, 128)      \
    kernel(attend_2, AttendArgs, AttendShared<2>, 128)      \
    kernel(attend_4, AttendArgs, AttendShared<4>, 128)      \
    kernel(attend_8, AttendArgs, AttendShared<8>, 128)      \
    kernel(attend_fast_4, AttendArgs, FastShared4, 128)     \
    kernel(attend_fast_8, AttendArgs, FastShared8, 128)     \
    kernel(attend_wide_4, AttendArgs, WideShared4, 128)     \
    kernel(merge, MergeArgs, RowShared, 128)                \
    kernel(score, CommitArgs, ScoreShared, 256)             \
    kernel(select, CommitArgs, SelectShared, 512)

// clang-format on

#define MIKV_GPU_KERNELS(kernel) MIKV_EXACT_KERNELS(kernel) MIKV_LOOSE_KERNELS(kernel)
