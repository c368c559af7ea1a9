// What GPU kernels are told: plain structs, the same bytes for host, CUDA, Metal and the emulator. Pointers are device addresses, 8 bytes each.
//
// A *head* is a KV head of one stream: number stream * n_head_kv + head, streams counted from the first one of the micro-batch. Its *rows* are the
// queries that meet it, row = head_in_group * n_tokens + token, so that arrays [n_stream][n_head][n_tokens] are arrays [head][n_rows].
// n_head = n_head_kv * group. Rows of the cache's space have dim_k, dim_v values (a multiple of 32, at most 512).
#pragma once

#include "format/cell.h"
#include "format/view.h"

namespace mikv {

constexpr int32_t largest_dim = 512; // of a row, in the cache's space

// Where a row is read from; CellIndex::place of the CPU. place_base, else a slot (0 and above), else exact row e as -2 - e.
constexpr int32_t gpu_place_base = -1;

// What one KV head counts. All zero in a cache that holds nothing, but n_free = n_slots.
struct HeadTally {
    int32_t n_free;     // slots nobody holds
    int32_t n_refined;  // slots that are held
    int32_t n_exact;    // exact rows that are held
    int32_t mean_count; // keys in mean_sum
    int32_t first_free; // no slot below it is free
    int32_t unused;
    int64_t demotions;
    int64_t mass[3]; // attention mass that fell on exact, refined and base rows, in 2^-24 of a query
};
constexpr float mass_unit = 16777216.0f;

// One KV head of one layer and stream on the device. The host uploads an array [n_stream][n_head_kv] of them for each layer, once.
struct GpuHead {
    HeadView                     view; // slot_cell and exact_cell begin as free_slot, everything else as zero
    MIKV_GLOBAL HeadTally *      tally;
    MIKV_GLOBAL float *          mean_sum; // [k.dim] sum of the keys stored since the last block got its mean
    MIKV_GLOBAL uint8_t *        has_mean; // [n_blocks]
    const MIKV_GLOBAL uint16_t * balancer; // f16 [head_dim_k], or null: keys are not balanced
};

// Clock of a stream: tokens stored and micro-batches begun. Zero at the start.
struct CellClock {
    uint32_t now;
    uint32_t batch;
};

// begin: what the mask tells of the cells, once per micro-batch, for all layers. Three kernels, in this order.
struct BeginArgs {
    const MIKV_GLOBAL int64_t *
        cells; // [n_stream][n_tokens]: (first_stream + stream) * n_cells + cell, as llama.cpp gives them
    const MIKV_GLOBAL uint16_t * mask;   // f16 [n_stream][n_tokens][n_kv], strides below; null: everything is visible
    MIKV_GLOBAL uint32_t *       born;   // [n_stream][n_cells], of the first stream of the micro-batch on, as all of these
    MIKV_GLOBAL uint32_t *       seen;   // [n_stream][n_cells]
    MIKV_GLOBAL uint8_t *        flags;  // [n_stream][n_cells] cell_holds, ...
    MIKV_GLOBAL int32_t *        staged; // [n_stream][n_cells] token of the micro-batch that waits in the cell, or -1
    MIKV_GLOBAL CellClock *      clock;  // [n_stream]
    MIKV_GLOBAL int32_t *        last;   // scratch [n_stream][n_tokens]
    int64_t                      mask_token, mask_stream; // values
    int32_t                      first_stream, n_stream;
    int32_t                      n_tokens; // per stream
    int32_t                      n_cells, n_kv;
    int32_t                      sinks, window;
};

// enter: rows of the model into the cache's space (FORMAT.md, "From the model's space to the cache's"), one head's part of one token a block.
struct EnterArgs {
    const MIKV_GLOBAL uint8_t * in; // f32 or f16 [n_stream][n_tokens][n_heads][dim]; strides in bytes
    MIKV_GLOBAL float * out; // keys, values: [n_stream][n_tokens][n_heads][row]; queries: [n_stream][n_heads][n_tokens][row]
    const MIKV_GLOBAL GpuHead * heads; // whose balancers apply: keys and queries; null: none do
    int64_t                     token_bytes, head_bytes, stream_bytes;
    int32_t                     n_stream, n_tokens, n_heads; // n_heads: KV heads for keys and values, query heads for queries
    int32_t                     group;                       // query heads of a KV head; 1 for keys and values
    int32_t                     dim, row;                    // values of a row in the model, in the cache
    int32_t                     half;                        // 1: in is f16
    int32_t                     query;  // 1: queries: the inverse of the balancer, times scale; 0: rounded to f16 first
    int32_t                     rotate; // 1: by H
    float                       scale;
};

// What attention sees of a layer; shared by index, attend, merge, score.
struct LayerArgs {
    const MIKV_GLOBAL GpuHead * heads;  // [n_stream * n_head_kv]
    const MIKV_GLOBAL int32_t * staged; // [n_stream][n_cells] of BeginArgs, or null: this layer has no rows of the micro-batch
    MIKV_GLOBAL int32_t *       place;  // scratch [n_stream * n_head_kv][n_kv]
    int32_t                     n_stream, n_head_kv, group;
    int32_t                     n_kv, n_cells;
    int32_t                     n_tokens;     // of the micro-batch, per stream
    int32_t                     dim_k, dim_v; // row
};

// attend: partial softmax sums of a run of cells, a *chunk*, for up to 8 rows of a KV head a block; and the logits of cells whose rows hold or want
// a slot. Row of attention for query i: token tokens[i].
struct AttendArgs {
    LayerArgs                    layer;
    const MIKV_GLOBAL float *    q;        // [n_stream][n_head][n_tokens][dim_k], by enter
    const MIKV_GLOBAL uint16_t * mask;     // as in BeginArgs
    const MIKV_GLOBAL float *    slope;    // [n_head] ALiBi, or null: 1
    const MIKV_GLOBAL int32_t *  tokens;   // [n_queries] whose queries are looked at, or null: all n_tokens
    const MIKV_GLOBAL float *    staged_k; // [n_stream][n_tokens][n_head_kv][dim_k], by enter
    const MIKV_GLOBAL float *    staged_v;
    MIKV_GLOBAL float *          part_m;   // scratch [n_heads][n_chunks][n_rows]: kernel/batch.h, Partial
    MIKV_GLOBAL float *          part_l;   // scratch [n_heads][n_chunks][n_rows]
    MIKV_GLOBAL float *          part_acc; // scratch [n_heads][n_chunks][n_rows][dim_v]; null: logits and sums only (probes)
    MIKV_GLOBAL float * kept;        // scratch [n_heads][n_rows][n_kept] logits: of slot s at s, of exact row e at n_slots + e,
                                     // of token t at n_slots + n_exact + t; null: nobody asks
    int64_t mask_token, mask_stream; // values
    int32_t n_queries;               // n_rows = group * n_queries
    int32_t n_chunks, chunk_cells;   // chunk c: cells [c, c + 1) * chunk_cells, a multiple of 128
    int32_t n_kept;                  // n_slots + n_exact + n_tokens of the head where that is most
    float   softcap;                 // 0: none
    int32_t code_group; // values of a group of keys and of values, if the fast kernels may be used; 0: the plain ones
};

// merge: the chunks' sums to attention's output in the model's space, and what score needs.
struct MergeArgs {
    const MIKV_GLOBAL float * part_m;
    const MIKV_GLOBAL float * part_l;
    const MIKV_GLOBAL float * part_acc; // null: no output
    const MIKV_GLOBAL float * sinks;    // [n_head] logits without a value, or null
    MIKV_GLOBAL float *       out;      // f32 [n_stream][n_queries][n_head][dim]
    MIKV_GLOBAL float *       final_m;  // [n_heads][n_rows] largest logit
    MIKV_GLOBAL float *       final_l;  // [n_heads][n_rows] sum of exp(logit - m); 0: the row saw nothing
    MIKV_GLOBAL float *       share;    // [n_heads][n_rows] of the row's weights, how much fell on cells: 1 without sinks
    int32_t                   n_stream, n_head_kv, group, n_queries, n_chunks;
    int32_t                   dim, row; // values of an output in the model, in the cache
    int32_t                   rotate;
};

// load: committed and waiting rows back to the model's space in f16, for the inner device's attention over many queries, and for state files. A
// cell that holds no token reads as zero.
struct LoadArgs {
    LayerArgs                   layer;
    const MIKV_GLOBAL uint8_t * flags;    // [n_stream][n_cells]
    const MIKV_GLOBAL float *   staged_k; // as in AttendArgs
    const MIKV_GLOBAL float *   staged_v;
    MIKV_GLOBAL uint16_t * k; // f16 [n_stream][n_kv - first_cell][n_head_kv][k_dim], strides below, in values; null: not wanted
    MIKV_GLOBAL uint16_t * v;
    int64_t                k_cell, k_head, k_stream;
    int64_t                v_cell, v_head, v_stream;
    int32_t                first_cell;   // cells [first_cell, n_kv) are loaded
    int32_t                k_dim, v_dim; // of the model
    int32_t                rotate;
};

// How attention enters a row's score, and how scores become priorities (policy/policy.h has the same and says whose they are).
constexpr int32_t fold_sum = 0, fold_window = 1, fold_peak = 2, fold_most = 3, fold_fixed = 4;
constexpr int32_t rank_by_score = 0, rank_by_age = 1, rank_by_neighbours = 2, rank_by_clamped_score = 3, rank_by_birth = 4,
                  rank_by_hash       = 5;
constexpr float gpu_window_half_life = 64.0f; // queries

// score and select: attention mass into scores, scores into places; the micro-batch's rows get theirs, others lose theirs. Then mean and store.
struct CommitArgs {
    LayerArgs                     layer;
    const MIKV_GLOBAL int64_t *   cells; // as in BeginArgs
    const MIKV_GLOBAL uint32_t *  born;
    const MIKV_GLOBAL uint32_t *  seen;
    const MIKV_GLOBAL uint8_t *   flags;
    const MIKV_GLOBAL CellClock * clock;
    const MIKV_GLOBAL float *     staged_k;
    const MIKV_GLOBAL float *     staged_v;
    const MIKV_GLOBAL float *     kept;    // of attend; null: no attention was measured
    const MIKV_GLOBAL float *     final_m; // of merge
    const MIKV_GLOBAL float *     final_l;
    const MIKV_GLOBAL float *     share;
    MIKV_GLOBAL float *    part_mass;   // scratch [n_heads][n_score_blocks][2]: mass that fell on refined rows, on exact ones
    MIKV_GLOBAL float *    token_mass;  // scratch [n_heads][n_tokens][2]: mass of the micro-batch's own rows; their first score
    MIKV_GLOBAL int32_t *  token_place; // scratch [n_heads][n_tokens]: places of the micro-batch's rows, as select chooses them
    MIKV_GLOBAL int32_t *  waiting;     // scratch [n_heads][n_tokens]: tokens that get a slot
    MIKV_GLOBAL uint32_t * key;         // scratch [n_heads][3][n_candidates]: who goes before whom, of slots, then of tokens
    int32_t                first_stream;
    int32_t                n_rows;                // of kept, final_m, ...: group * n_queries
    int32_t n_kept, n_score_blocks, n_candidates; // n_candidates: n_slots + n_tokens of the head where that is most
    int32_t fold, rank;
    int32_t by_value; // 1: priority times the norm of the value
    int32_t center_keys;
    int32_t layer_number; // rank_by_hash
    float   mass_scale;   // queries that the measured ones stand for: n_tokens / n_queries
};

} // namespace mikv
