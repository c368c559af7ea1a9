// From what the user asked for to what is allocated: pure arithmetic.
#pragma once

#include "format/head.h"
#include "include/mikv.h"

namespace mikv {

constexpr int staging_tokens = 512; // llama.cpp's default micro-batch: what a budget sets aside for staging

mikv_config default_config();
mikv_status check_config(const mikv_config & config);
mikv_status check_shape(const mikv_shape & shape);

// The arrays of one KV head. config as the user gave it; a budget is turned into slots here.
// MIKV_ERROR_BUDGET if it holds not even base, sinks and window: the sentence names the smallest that does.
mikv_status plan_head(const mikv_config & config, const mikv_shape & shape, HeadLayout * layout);

// All bytes of a cache: heads, tables, and staging for staging_tokens.
int64_t planned_bytes(const HeadLayout & layout, const mikv_shape & shape);

// The config with group, head sizes and refined_share as they came out.
mikv_config applied_config(const mikv_config & config, const mikv_shape & shape, const HeadLayout & layout);

int64_t f16_bytes(const mikv_shape & shape);

} // namespace mikv
