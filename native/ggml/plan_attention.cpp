// Attention in a plan: what llama.cpp's FLASH_ATTN_EXT on KV tensors becomes.
#include <algorithm>
#include <cstring>

#include "ggml-impl.h"
#include "ggml/plan.h"
#include "ggml/rotation.h"

namespace mikv {

namespace {

// Does it hold what it holds before the graph runs?
bool is_input(const ggml_tensor * t) { return t->op == GGML_OP_NONE && (!t->view_src || t->view_src->op == GGML_OP_NONE); }

} // namespace

bool Plan::add_attention(ggml_tensor * node) {
    if (!attends_layer(node)) {
        return false;
    }
    const ggml_tensor *        q = node->src[0], *k = node->src[1], *mask = node->src[3], *sinks = node->src[4];
    const KvTensor &           key   = *kv_tensor(k);
    Cache &                    cache = key.buffer->cache(key);
    std::shared_ptr<LayerWork> layer;
    const auto                 entry = waiting_.find(&cache);
    if (entry != waiting_.end() && entry->second->tensor.index == key.index && entry->second->has_key &&
        entry->second->has_value && entry->second->cells->ne[0] == q->ne[1] * q->ne[3]) {
        layer = entry->second;
        waiting_.erase(entry);
    } else {
        layer         = std::make_shared<LayerWork>();
        layer->tensor = key;
        layers_.push_back(layer);
    }
    const bool staged = layer->cells != nullptr;
    layer->shape      = {key.index, int(q->ne[3]), first_stream_of(k), int(q->ne[1]), int(k->ne[1]), int(q->ne[2]), staged};
    layer->step       = std::make_unique<Step>(cache, layer->shape, n_threads_);
    std::vector<const ggml_tensor *> inputs = {q};
    for (const ggml_tensor * t : {mask, sinks}) {
        if (t) {
            inputs.push_back(t);
        }
    }
    HostData * data = &data_;
    const auto bind = [layer, node, q, mask, sinks, data] {
        StepData & d     = layer->data;
        d.q              = data->at(q);
        d.q_token_bytes  = int64_t(q->nb[1]);
        d.q_head_bytes   = int64_t(q->nb[2]);
        d.q_stream_bytes = int64_t(q->nb[3]);
        if (mask) {
            d.mask        = reinterpret_cast<const uint16_t *>(data->at(mask));
            d.mask_token  = int64_t(mask->nb[1] / sizeof(uint16_t));
            d.mask_stream = mask->ne[3] == 1 ? 0 : int64_t(mask->nb[3] / sizeof(uint16_t));
        } else {
            layer->open_mask.assign(size_t(layer->shape.n_kv), 0);
            d.mask = layer->open_mask.data();
        }
        d.sinks    = sinks ? reinterpret_cast<const float *>(data->at(sinks)) : nullptr;
        d.out      = reinterpret_cast<float *>(data->at(node));
        d.scale    = op_float(node, 0);
        d.max_bias = op_float(node, 1);
        d.softcap  = op_float(node, 2);
        layer->step->bind(d);
    };
    if (!data_.foreign()) {
        bind(); // the addresses are known
    }
    if (reads_in_place(*layer, mask)) {
        add_one_phase(layer, node, inputs);
    } else {
        add_phases(layer, node, inputs, bind);
    }
    return true;
}

// Can the rows be read where they are computed when attention runs, and cells and mask before the graph runs?
bool Plan::reads_in_place(const LayerWork & layer, const ggml_tensor * mask) const {
    if (data_.foreign() || !layer.cells || !only_attends_ || !layer.step->has_one_phase() || !is_input(layer.cells) ||
        (mask && !is_input(mask))) {
        return false;
    }
    bool stages_key = false, stages_value = false;
    for (size_t i = nodes_.size(); i > 0 && !(stages_key && stages_value);
         i--) { // nothing computed since may have taken their memory
        const PlannedNode & before = nodes_[i - 1];
        if (before.work ? before.work != layer.stage_key && before.work != layer.stage_value
                        : !moves_nothing(before.node->op)) {
            return false;
        }
        stages_key   = stages_key || (before.work && before.work == layer.stage_key);
        stages_value = stages_value || (before.work && before.work == layer.stage_value);
    }
    return stages_key && stages_value;
}

// What llama.cpp would have rotated comes unrotated, in memory of ours, for llama.cpp takes it for done with once it is rotated.
bool Plan::take_rotation(const ggml_tensor * rotated, int head_dim, Unrotated & to) {
    const Rotation r = rotation_before(graph_, rotated);
    if (!r || head_dim % r.block) {
        return false;
    }
    const auto planned = [&](const ggml_tensor * node) {
        return std::find_if(nodes_.rbegin(), nodes_.rend(), [node](const PlannedNode & p) { return p.node == node; });
    };
    const auto rotation = planned(r.node), source = planned(r.source);
    if (rotation == nodes_.rend() || source == nodes_.rend()) { // of another part of llama.cpp's graph
        return false;
    }
    to.block = r.block;
    to.values.resize(ggml_nbytes(r.source) / sizeof(float));
    tensors_.push_back(std::make_unique<ggml_tensor>(*r.source));
    tensors_.back()->data = to.values.data();
    source->node          = tensors_.back().get();
    nodes_.erase(std::next(rotation).base());
    return true;
}

// llama.cpp's rotations around the layer's attention, as far as the layer's node can do them. Returns the tensor that it then writes.
const ggml_tensor * Plan::take_rotations(LayerWork & layer, const ggml_tensor * node) {
    const mikv_shape & shape = layer.cache().shape();
    if (take_rotation(node->src[0], shape.head_dim_k, layer.query)) {
        layer.data.q       = reinterpret_cast<const char *>(layer.query.values.data());
        layer.data.q_block = layer.query.block;
    }
    take_rotation(layer.key_rows, shape.head_dim_k, layer.keys);
    take_rotation(layer.value_rows, shape.head_dim_v, layer.values);
    const Rotation after = rotation_after(graph_, at_);
    if (!after || shape.head_dim_v % after.block) {
        return node;
    }
    done_.insert(after.node);
    layer.data.out       = static_cast<float *>(after.node->data);
    layer.data.out_block = after.block;
    return after.node;
}

// Few queries: one node for all that a layer does with its cache.
void Plan::add_one_phase(const std::shared_ptr<LayerWork> & layer, const ggml_tensor * node,
                         const std::vector<const ggml_tensor *> & inputs) {
    const auto stages = [&](const PlannedNode & planned) {
        return planned.work && (planned.work == layer->stage_key || planned.work == layer->stage_value);
    };
    nodes_.erase(std::remove_if(nodes_.begin(), nodes_.end(), stages), nodes_.end());
    const ggml_tensor * out  = take_rotations(*layer, node);
    HostData *          data = &data_;
    Work &              work = new_work(inputs, nullptr);
    // llama.cpp takes the rows for done with once they are stored, and all else once it is attended.
    std::vector<const ggml_tensor *> read = inputs;
    read[0]                               = layer->query.block ? nullptr : inputs[0];
    read.push_back(layer->keys.block ? nullptr : layer->key_rows);
    read.push_back(layer->values.block ? nullptr : layer->value_rows);
    for (const ggml_tensor * t : read) {
        if (t && overlap(t, out)) {
            layer->own_out.resize(ggml_nbytes(out) / sizeof(float));
            layer->data.out  = layer->own_out.data();
            layer->data.copy = reinterpret_cast<float *>(data->at(out));
        }
    }
    work.prepare = [layer, data] {
        read_cells(*layer, data->at(layer->cells));
        layer->data.rows = layer->source(data->at(layer->key_rows), data->at(layer->value_rows));
        layer->step->bind(layer->data);
        layer->open(false);
        layer->step->start();
    };
    work.run = [layer, &work](int, int) { work.share(layer->step->items(), [&](int item) { layer->step->work(item); }); };
}

void Plan::add_phases(const std::shared_ptr<LayerWork> & layer, ggml_tensor * node,
                      const std::vector<const ggml_tensor *> & inputs, const std::function<void()> & bind) {
    HostData * data   = &data_;
    const bool staged = layer->cells != nullptr;
    if (!staged) {
        Work & index = new_work({}, nullptr);
        index.run    = [layer, &index](int, int) {
            index.share(layer->step->index_items(), [&](int item) { layer->step->index(item); });
        };
    }
    Work & attend = new_work(inputs, nullptr);
    if (data_.foreign()) {
        attend.prepare = [layer, node, staged, data, bind] {
            data->room_for(node);
            bind();
            if (staged) {
                layer->open(false);
            }
        };
    }
    attend.run = [layer, &attend](int, int) {
        attend.share(layer->step->attend_items(), [&](int item) { layer->step->attend(item); });
    };
    if (layer->step->probe_items() > 0) {
        Work & probe = new_work({}, nullptr);
        probe.run    = [layer, &probe](int, int) {
            probe.share(layer->step->probe_items(), [&](int item) { layer->step->probe(item); });
        };
    }
    Work & commit = new_work({}, node);
    commit.run    = [layer, &commit](int, int) {
        commit.share(layer->step->commit_items(), [&](int item) { layer->step->commit(item); });
    };
}

} // namespace mikv
