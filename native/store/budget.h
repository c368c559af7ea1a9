// From what the user asked for to what is allocated: pure arithmetic.
#pragma once

#include <vector>

#include "format/head.h"
#include "include/mikv.h"

namespace mikv {

constexpr int staging_tokens = 512; // llama.cpp's default micro-batch: what a budget sets aside for staging

mikv_config default_config();
mikv_status check_config(const mikv_config & config);
mikv_status check_shape(const mikv_shape & shape);

// The arrays of all KV heads of one stream.
struct CacheLayout {
    int                     n_head_kv    = 0;
    int                     balancer_dim = 0;     // 16-bit values of each head's balancer, order or basis; 0: none
    bool                    query_sums   = false; // the policy reads the queries
    int                     n_blocks     = 0;     // blocks of the head that has most
    std::vector<HeadLayout> heads;                // [n_layer][n_head_kv]

    const HeadLayout & at(int index, int head) const { return heads[size_t(index) * n_head_kv + head]; }
    size_t             layer_bytes(int index) const; // all heads of one stream
    int                n_rows(int index) const;      // rows of the layer's head that has most
};

// layers: llama.cpp's numbers of the cache's layers, [shape.n_layer]. config as the user gave it; a budget is turned into slots here.
// MIKV_ERROR_BUDGET if it holds not even base, sinks and window: the sentence names the smallest that does.
mikv_status plan_cache(const mikv_config & config, const mikv_shape & shape, const std::vector<int> & layers,
                       CacheLayout * layout);

// All bytes of a cache: heads, tables, and staging for staging_tokens.
int64_t planned_bytes(const CacheLayout & layout, const mikv_shape & shape);

// The config with group, head sizes, refined_share (the mean over all heads) and window (with recent_share) as they came out.
mikv_config applied_config(const mikv_config & config, const mikv_shape & shape, const CacheLayout & layout);

int64_t f16_bytes(const mikv_shape & shape);

} // namespace mikv
