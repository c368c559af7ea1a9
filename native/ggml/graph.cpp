#include "ggml/graph.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "ggml-impl.h"
#include "ggml/graph_identity.h"

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

} // namespace

void GraphRunner::make_nodes() {
    custom_.clear();
    nodes_.clear();
    custom_.reserve(plan_->nodes().size()); // nodes_ points into it
    for (const PlannedNode & planned : plan_->nodes()) {
        if (planned.work) {
            custom_.push_back(custom_node(planned.work));
        }
        nodes_.push_back(planned.work ? &custom_.back() : planned.node);
    }
}

ggml_status GraphRunner::compute_inside(const ggml_cgraph & graph) {
    for (const PlannedNode & planned : plan_->nodes()) {
        if (planned.work && planned.work->prepare) {
            planned.work->prepare();
        }
    }
    ggml_cgraph whole = with_nodes(graph, nodes_.data(), int(nodes_.size()));
    return ggml_backend_graph_compute(inner_, &whole);
}

ggml_status GraphRunner::compute_in_pieces(const ggml_cgraph & graph) {
    std::vector<ggml_tensor *> piece;
    const auto                 flush = [&]() {
        ggml_status status = GGML_STATUS_SUCCESS;
        if (!piece.empty()) {
            ggml_cgraph part = with_nodes(graph, piece.data(), int(piece.size()));
            status           = ggml_backend_graph_compute(inner_, &part); // waits: the host reads the results
            piece.clear();
        }
        return status;
    };
    for (const PlannedNode & planned : plan_->nodes()) {
        if (!planned.work) {
            piece.push_back(planned.node);
            continue;
        }
        const ggml_status status = flush();
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        for (const ggml_tensor * input : planned.work->inputs) {
            plan_->data().fetch(input);
        }
        if (planned.work->prepare) {
            planned.work->prepare();
        }
        planned.work->run(0, 1);
        if (planned.work->output) {
            plan_->data().deliver(planned.work->output);
        }
    }
    return flush();
}

// Is the graph one for kernels on the device? Then gpu_plan_ is its plan. Attention that is not, now or ever: the cache comes home for good.
bool GraphRunner::runs_on_gpu(ggml_cgraph * graph) {
    if (!device_.gpu.device) {
        return false;
    }
    if (gpu_plan_ && gpu_plan_->identity().same(GraphIdentity::of(graph, 0))) {
        return true;
    }
    if (!loaded_) {
        loaded_   = std::make_unique<LoadedRows>();
        handover_ = std::make_unique<Handover>(device_, inner_);
    }
    gpu_plan_.reset();
    ggml_backend_synchronize(inner_); // nothing of the last plan is at work any more
    std::string why;
    gpu_plan_ = GpuPlan::make(device_, graph, *loaded_, &why);
    if (!gpu_plan_) {
        stay_home(*graph, why);
    }
    return gpu_plan_ != nullptr;
}

void GraphRunner::stay_home(const ggml_cgraph & graph, const std::string & why) {
    std::set<Cache *> caches;
    bool              attends = false;
    const auto        note    = [&caches](const ggml_tensor * t) {
        if (t && kv_tensor(t)) {
            caches.insert(&kv_tensor(t)->buffer->cache(*kv_tensor(t)));
        }
    };
    for (int i = 0; i < graph.n_nodes; i++) {
        const ggml_tensor * node = graph.nodes[i];
        note(node);
        std::for_each(node->src, node->src + GGML_MAX_SRC, note);
        attends = attends || (node->op == GGML_OP_FLASH_ATTN_EXT && uses_cache(node));
    }
    for (Cache * cache : caches) {
        cache->bring_home(all_layers, true);
        if (attends && cache->elsewhere()) {
            GGML_LOG_WARN("mikv: %s: attention over the cache goes through the CPU from now on: %s\n", device_.name.c_str(),
                          why.c_str());
            cache->live(nullptr);
        }
    }
}

ggml_status GraphRunner::compute(ggml_cgraph * graph, int n_threads) {
    if (runs_on_gpu(graph)) {
        return gpu_plan_->compute(*graph, inner_, *handover_);
    }
    if (!plan_ || !plan_->identity().same(GraphIdentity::of(graph, n_threads))) {
        plan_.reset(); // its memory before that of the next
        plan_ = std::make_unique<Plan>(device_, graph, n_threads);
        make_nodes();
    }
    if (!plan_->touches_cache()) {
        return ggml_backend_graph_compute_async(inner_, graph);
    }
    for (const PlannedNode & planned : plan_->nodes()) {
        if (planned.work) {
            planned.work->next = 0;
        }
    }
    return device_.foreign ? compute_in_pieces(*graph) : compute_inside(*graph);
}

} // namespace mikv
