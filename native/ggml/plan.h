// From llama.cpp's graph to a list of nodes, each the inner device's or work of ours.
#pragma once

#include <map>
#include <set>

#include "ggml/graph_identity.h"
#include "ggml/node.h"
#include "ggml/work.h"

namespace mikv {

struct PlannedNode {
    ggml_tensor * node = nullptr; // for the inner device
    Work *        work = nullptr; // ours, in its stead
};

class Plan {
public:
    Plan(Device & device, ggml_cgraph * graph, int n_threads);
    ~Plan();

    const GraphIdentity &            identity() const { return identity_; }
    bool                             touches_cache() const { return touches_cache_; }
    const std::vector<PlannedNode> & nodes() const { return nodes_; }
    HostData &                       data() { return data_; }

private:
    void                       add(ggml_tensor * node);
    bool                       reads_in_place(const LayerWork & layer, const ggml_tensor * mask) const;
    bool                       take_rotation(const ggml_tensor * rotated, int head_dim, Unrotated & to);
    const ggml_tensor *        take_rotations(LayerWork & layer, const ggml_tensor * node);
    void                       add_one_phase(const std::shared_ptr<LayerWork> & layer, const ggml_tensor * node,
                                             const std::vector<const ggml_tensor *> & inputs);
    void                       add_phases(const std::shared_ptr<LayerWork> & layer, ggml_tensor * node,
                                          const std::vector<const ggml_tensor *> & inputs, const std::function<void()> & bind);
    bool                       add_set_rows(ggml_tensor * node);
    bool                       add_attention(ggml_tensor * node);
    bool                       add_copy(ggml_tensor * node);
    void                       add_through_shadow(ggml_tensor * node); // any other operation: on a copy in the logical type
    void                       settle(Cache & cache); // rows of the cache that wait without attention are committed
    void                       settle_all();
    Work &                     new_work(std::vector<const ggml_tensor *> inputs, ggml_tensor * output);
    std::shared_ptr<LayerWork> layer_work(const KvTensor & tensor, const ggml_tensor * cells);
    ggml_tensor *              shadow_of(const ggml_tensor * root);
    ggml_tensor *              on_shadow(ggml_tensor * t);

    Device &                           device_;
    GraphIdentity                      identity_;
    int                                n_threads_;
    HostData                           data_;
    const ggml_cgraph *                graph_         = nullptr; // while the plan is made, with the node at work
    int                                at_            = 0;
    bool                               touches_cache_ = false;
    bool                               only_attends_  = true; // and stores rows for that: nothing else touches the cache
    std::vector<PlannedNode>           nodes_;
    std::vector<std::unique_ptr<Work>> work_;
    std::map<Cache *, std::shared_ptr<LayerWork>> waiting_; // the layer whose rows are staged
    std::map<Cache *, bool>                       begun_;
    std::vector<std::shared_ptr<LayerWork>>       layers_;
    std::map<const ggml_tensor *, ggml_tensor *>  shadows_; // of KV roots
    std::set<const ggml_tensor *>                 done_;    // nodes to come whose work a node before does
    std::vector<std::unique_ptr<ggml_tensor>>     tensors_;
    std::vector<ggml_backend_buffer_t>            buffers_;
};

} // namespace mikv
