#include "backend/gpu/operations.h"

#include <algorithm>
#include <iterator>

#include "kernel/gpu/shared.h"

namespace mikv {

namespace {

const GpuKernelRow rows[] = {
#define MIKV_ROW(name, Arguments, Shared, n_threads) {"mikv_" #name, n_threads, uint32_t(sizeof(Arguments))},
    MIKV_GPU_KERNELS(MIKV_ROW)
#undef MIKV_ROW
};

constexpr int blocks_per_processor = 4;

uint32_t blocks_of(int64_t n, int per_block) { return uint32_t((n + per_block - 1) / per_block); }

template <class Args> int launch(const GpuQueue & q, GpuKernel kernel, uint32_t x, uint32_t y, uint32_t z, const Args & args) {
    if (x == 0 || y == 0 || z == 0) {
        return gpu_ok;
    }
    return q.device->launch(q.queue, {kernel, {x, y, z}, &args});
}

} // namespace

const GpuKernelRow & gpu_kernel(GpuKernel kernel) { return rows[int(kernel)]; }

int gpu_begin(const GpuQueue & q, const BeginArgs & a) {
    const uint32_t streams = uint32_t(a.n_stream);
    int            error   = launch(q, GpuKernel::begin_cells, blocks_of(a.n_cells, begin_threads), streams, 1, a);
    if (!error) {
        error = launch(q, GpuKernel::begin_tokens, blocks_of(a.n_tokens, begin_threads / 32), streams, 1, a);
    }
    return error ? error : launch(q, GpuKernel::begin_recent, streams, 1, 1, a);
}

int gpu_enter(const GpuQueue & q, const EnterArgs & a) {
    return launch(q, GpuKernel::enter, uint32_t(a.n_heads), uint32_t(a.n_tokens), uint32_t(a.n_stream), a);
}

int gpu_index(const GpuQueue & q, const LayerArgs & a) {
    const uint32_t heads = uint32_t(a.n_stream * a.n_head_kv);
    const int      error = launch(q, GpuKernel::index_clear, blocks_of(a.n_kv, index_threads), heads, 1, a);
    return error ? error : launch(q, GpuKernel::index_place, index_blocks, heads, 1, a);
}

namespace {

// Which kernel attends, the first that fits: rows it looks at in one block, the longest rows of the cache, and the group that it knows.
struct AttendKernel {
    GpuKernel kernel;
    int       rows, most_dim, group; // group 0: any
    int       at_least;              // rows that there must be
};
const AttendKernel attend_kernels[] = {
    {GpuKernel::attend_fast_8, 8, 128, fast_group, 5}, {GpuKernel::attend_fast_4, 4, 128, fast_group, 1},
    {GpuKernel::attend_wide_4, 4, 256, fast_group, 1}, {GpuKernel::attend_8, 8, largest_dim, 0, 5},
    {GpuKernel::attend_4, 4, largest_dim, 0, 3},       {GpuKernel::attend_2, 2, largest_dim, 0, 2},
    {GpuKernel::attend_1, 1, largest_dim, 0, 1},
};

const AttendKernel & attend_kernel(const AttendArgs & a) {
    const int n_rows = a.layer.group * a.n_queries, dim = std::max(a.layer.dim_k, a.layer.dim_v);
    return *std::find_if(std::begin(attend_kernels), std::end(attend_kernels), [&](const AttendKernel & k) {
        return n_rows >= k.at_least && dim <= k.most_dim && (k.group == 0 || k.group == a.code_group);
    });
}

} // namespace

int gpu_attend(const GpuQueue & q, const AttendArgs & a) {
    const AttendKernel & k = attend_kernel(a);
    return launch(q, k.kernel, uint32_t(a.n_chunks), blocks_of(a.layer.group * a.n_queries, k.rows),
                  uint32_t(a.layer.n_stream * a.layer.n_head_kv), a);
}

int gpu_merge(const GpuQueue & q, const MergeArgs & a) {
    return launch(q, GpuKernel::merge, uint32_t(a.group * a.n_queries), uint32_t(a.n_stream * a.n_head_kv), 1, a);
}

int gpu_load(const GpuQueue & q, const LoadArgs & a) {
    return launch(q, GpuKernel::load, uint32_t(a.layer.n_kv - a.first_cell), uint32_t(a.layer.n_stream * a.layer.n_head_kv), 2,
                  a);
}

int gpu_commit(const GpuQueue & q, const CommitArgs & a) {
    const uint32_t heads  = uint32_t(a.layer.n_stream * a.layer.n_head_kv);
    const uint32_t tokens = uint32_t(a.layer.n_tokens);
    int            error  = launch(q, GpuKernel::score, uint32_t(a.n_score_blocks), heads, 1, a);
    if (!error) {
        error = launch(q, GpuKernel::select, heads, 1, 1, a);
    }
    if (!error && a.center_keys) {
        error = launch(q, GpuKernel::mean, heads, 1, 1, a);
    }
    return error ? error : launch(q, GpuKernel::store, tokens, heads, 2, a);
}

Scratch lay_out_scratch(const ScratchShape & s, uint8_t * base) {
    Scratch      r     = {};
    const size_t heads = size_t(s.n_stream) * s.n_head_kv, rows = size_t(s.group) * s.n_queries;
    const int    tiles = int(blocks_of(s.n_kv, attend_tile));
    const int wanted = int(blocks_of(int64_t(s.n_processors) * blocks_per_processor, int(heads * blocks_of(int64_t(rows), 8))));
    r.chunk_cells    = int(blocks_of(tiles, std::max(1, std::min(wanted, tiles)))) * attend_tile;
    r.n_chunks       = int(blocks_of(s.n_kv, r.chunk_cells));
    r.n_kept         = s.n_slots + s.n_exact + s.n_tokens;
    r.n_candidates   = s.n_slots + s.n_tokens;
    r.n_score_blocks = int(blocks_of(r.n_kept, score_threads));
    size_t     at    = 0;
    const auto take  = [&](size_t n) {
        uint8_t * here = base ? base + at : nullptr;
        at += (n * 4 + 255) / 256 * 256;
        return reinterpret_cast<float *>(here);
    };
    const size_t tokens = size_t(s.n_stream) * s.n_tokens, parts = heads * size_t(r.n_chunks) * rows;
    r.place       = reinterpret_cast<int32_t *>(take(heads * size_t(s.n_kv)));
    r.staged_k    = take(tokens * s.n_head_kv * s.dim_k);
    r.staged_v    = take(tokens * s.n_head_kv * s.dim_v);
    r.q           = take(tokens * s.n_head_kv * s.group * s.dim_k);
    r.part_m      = take(parts);
    r.part_l      = take(parts);
    r.part_acc    = s.with_output ? take(parts * s.dim_v) : nullptr;
    r.kept        = take(heads * rows * r.n_kept);
    r.final_m     = take(heads * rows);
    r.final_l     = take(heads * rows);
    r.share       = take(heads * rows);
    r.part_mass   = take(heads * r.n_score_blocks * 2);
    r.token_mass  = take(heads * s.n_tokens * 2);
    r.token_place = reinterpret_cast<int32_t *>(take(heads * s.n_tokens));
    r.waiting     = reinterpret_cast<int32_t *>(take(heads * s.n_tokens));
    r.key         = reinterpret_cast<uint32_t *>(take(heads * 3 * r.n_candidates));
    r.last        = reinterpret_cast<int32_t *>(take(tokens));
    r.size_bytes  = at;
    return r;
}

} // namespace mikv
