// What a node of llama.cpp's graph is to us.
#pragma once

#include "ggml/buffer.h"

namespace mikv {

// A view, or nothing at all?
inline bool moves_nothing(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_RESHAPE || op == GGML_OP_VIEW || op == GGML_OP_PERMUTE ||
           op == GGML_OP_TRANSPOSE;
}

// Are its values one after another, in the order of its dimensions?
bool contiguous(const ggml_tensor * t);

bool  uses_cache(const ggml_tensor * node); // reads or writes a KV tensor
float op_float(const ggml_tensor * node, int i);
bool  overlap(const ggml_tensor * a, const ggml_tensor * b); // in memory

// SET_ROWS of whole rows into a KV tensor, token after token?
bool stores_rows(const ggml_tensor * node);
// FLASH_ATTN_EXT over keys and values of one layer, as build_attn makes it?
bool attends_layer(const ggml_tensor * node);
// First stream that an attention's keys are of.
int first_stream_of(const ggml_tensor * keys);

// The heads' sizes are learnt from a graph.
void fit_heads(const ggml_cgraph * graph);

} // namespace mikv
