// The operations as a host calls them: each queues its kernels with the right number of blocks. All return gpu_ok or the device's error.
//
// Once per micro-batch: gpu_begin. Then for each layer
//   few queries (decode):  gpu_enter of keys, values, queries; gpu_index; gpu_attend; gpu_merge; gpu_commit
//   many (prompt):         gpu_enter of keys, values; gpu_index; gpu_load, and the inner device's attention on what it loaded; gpu_enter of
//                          queries, gpu_attend with tokens = the probes and part_acc = null, gpu_merge with part_acc = null; gpu_commit
// A layer that reads another layer's rows: gpu_index with staged = null, then as above without gpu_commit.
#pragma once

#include <cstddef>

#include "backend/gpu/device.h"

namespace mikv {

int gpu_begin(const GpuQueue & queue, const BeginArgs & args);
int gpu_enter(const GpuQueue & queue, const EnterArgs & args);
int gpu_index(const GpuQueue & queue, const LayerArgs & args);
int gpu_attend(const GpuQueue & queue, const AttendArgs & args);
int gpu_merge(const GpuQueue & queue, const MergeArgs & args);
int gpu_load(const GpuQueue & queue, const LoadArgs & args);
int gpu_commit(const GpuQueue & queue, const CommitArgs & args);

// What a layer's step works in, so that the host allocates it once for all layers: the largest step decides.
struct ScratchShape {
    int  n_stream, n_head_kv, group;
    int  n_tokens;  // per stream
    int  n_queries; // rows that gpu_attend looks at: n_tokens, or the probes
    int  n_kv;
    int  dim_k, dim_v;     // row
    int  n_slots, n_exact; // of the head where they are most
    bool with_output;      // attend gives outputs, not only logits (decode)
    int  n_processors;     // of the device, streaming multiprocessors or cores: how finely to cut the context
};

// Arrays of the argument structs of the same names, each at a multiple of 256 bytes.
struct Scratch {
    int32_t *  place;
    float *    staged_k;
    float *    staged_v;
    float *    q; // n_tokens of them, of which n_queries are looked at
    float *    part_m;
    float *    part_l;
    float *    part_acc; // null without output
    float *    kept;
    float *    final_m;
    float *    final_l;
    float *    share;
    float *    part_mass;
    float *    token_mass;
    int32_t *  token_place;
    int32_t *  waiting;
    uint32_t * key;
    int32_t *  last; // BeginArgs
    int32_t    n_chunks, chunk_cells, n_kept, n_score_blocks, n_candidates;
    size_t     size_bytes;
};

// base: device address at a multiple of 256; null counts bytes only.
Scratch lay_out_scratch(const ScratchShape & shape, uint8_t * base);

} // namespace mikv
