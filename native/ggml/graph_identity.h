// What tells that llama.cpp computes the same graph again, with the tensors where they were.
#pragma once

#include <cstdint>

#include "ggml-impl.h"

#include "store/cache.h"

namespace mikv {

struct GraphIdentity {
    uint64_t       uid     = 0; // 0: never the same
    ggml_tensor ** nodes   = nullptr;
    int            n_nodes = 0, n_threads = 0;
    uint64_t       moves = 0; // of caches' contents: a plan knows where they lie

    static GraphIdentity of(const ggml_cgraph * graph, int n_threads) {
        return {graph->uid, graph->nodes, graph->n_nodes, n_threads, Cache::moves()};
    }
    bool same(const GraphIdentity & b) const {
        return uid && uid == b.uid && nodes == b.nodes && n_nodes == b.n_nodes && n_threads == b.n_threads && moves == b.moves;
    }
};

// A graph of these nodes, which are some of `graph`, or stand for some.
inline ggml_cgraph with_nodes(const ggml_cgraph & graph, ggml_tensor ** nodes, int n_nodes) {
    ggml_cgraph part = graph;
    part.nodes       = nodes;
    part.n_nodes     = n_nodes;
    part.size        = n_nodes;
    part.grads = part.grad_accs = nullptr;
    part.uid                    = 0;
    return part;
}

} // namespace mikv
