#include "ggml/graph.h"

#include <cstring>

#include "ggml-impl.h"
#include "ggml/plan.h"

namespace mikv {

namespace {

void run_custom(ggml_tensor *, int thread, int n_threads, void * work) { static_cast<Work *>(work)->run(thread, n_threads); }

// A node that makes the inner CPU backend run our work on its threads.
ggml_tensor custom_node(Work * work) {
    ggml_tensor node{};
    node.type  = GGML_TYPE_F32;
    node.op    = GGML_OP_CUSTOM;
    node.flags = GGML_TENSOR_FLAG_COMPUTE;
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        node.ne[i] = 1;
        node.nb[i] = sizeof(float);
    }
    const ggml_custom_op_params params = {run_custom, GGML_N_TASKS_MAX, work};
    static_assert(sizeof(params) <= sizeof(node.op_params), "custom op parameters fit");
    std::memcpy(node.op_params, &params, sizeof(params));
    return node;
}

ggml_cgraph with_nodes(const ggml_cgraph & graph, ggml_tensor ** nodes, int n_nodes) {
    ggml_cgraph part = graph;
    part.nodes       = nodes;
    part.n_nodes     = n_nodes;
    part.size        = n_nodes;
    part.grads = part.grad_accs = nullptr;
    part.uid                    = 0;
    return part;
}

ggml_status compute_inside(ggml_backend_t inner, const ggml_cgraph & graph, Plan & plan) {
    std::vector<ggml_tensor>   custom;
    std::vector<ggml_tensor *> nodes;
    custom.reserve(plan.nodes().size());
    for (const PlannedNode & planned : plan.nodes()) {
        if (planned.work) {
            if (planned.work->prepare) {
                planned.work->prepare();
            }
            custom.push_back(custom_node(planned.work));
            nodes.push_back(&custom.back());
        } else {
            nodes.push_back(planned.node);
        }
    }
    ggml_cgraph whole = with_nodes(graph, nodes.data(), int(nodes.size()));
    return ggml_backend_graph_compute(inner, &whole);
}

ggml_status compute_in_pieces(ggml_backend_t inner, const ggml_cgraph & graph, Plan & plan) {
    std::vector<ggml_tensor *> piece;
    const auto                 flush = [&]() {
        ggml_status status = GGML_STATUS_SUCCESS;
        if (!piece.empty()) {
            ggml_cgraph part = with_nodes(graph, piece.data(), int(piece.size()));
            status           = ggml_backend_graph_compute(inner, &part); // waits: the host reads the results
            piece.clear();
        }
        return status;
    };
    for (const PlannedNode & planned : plan.nodes()) {
        if (!planned.work) {
            piece.push_back(planned.node);
            continue;
        }
        const ggml_status status = flush();
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        for (const ggml_tensor * input : planned.work->inputs) {
            plan.data().fetch(input);
        }
        if (planned.work->prepare) {
            planned.work->prepare();
        }
        planned.work->run(0, 1);
        if (planned.work->output) {
            plan.data().deliver(planned.work->output);
        }
    }
    return flush();
}

} // namespace

ggml_status compute_graph(Device & device, ggml_backend_t inner, ggml_cgraph * graph, int n_threads) {
    Plan plan(device, graph, n_threads);
    if (!plan.touches_cache()) {
        return ggml_backend_graph_compute_async(inner, graph);
    }
    return device.foreign ? compute_in_pieces(inner, *graph, plan) : compute_inside(inner, *graph, plan);
}

} // namespace mikv
