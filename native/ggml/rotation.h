// llama.cpp's own Hadamard rotation around a quantized cache, recognised in a graph: a node of ours can then do it by the way, and its
// four nodes, with the waits after them, fall away.
#pragma once

#include "ggml/device.h"

namespace mikv {

struct Rotation {
    ggml_tensor * node   = nullptr; // the MUL_MAT that llama.cpp says is one; null: none
    ggml_tensor * source = nullptr; // what computes the values that it rotates
    int           block  = 0;       // values rotated together

    explicit operator bool() const { return node != nullptr; }
};

// The rotation that t is the result of, or a view of that: all of it, from its start. Only if nothing else reads what the rotation reads or
// writes, so that neither needs to be there, and if both lie in memory without gaps in the same order.
Rotation rotation_before(const ggml_cgraph * graph, const ggml_tensor * t);

// The rotation that comes next after node `index` of the graph and reads all of its result; the same conditions.
Rotation rotation_after(const ggml_cgraph * graph, int index);

} // namespace mikv
