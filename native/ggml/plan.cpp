#include "ggml/plan.h"

#include <algorithm>
#include <cstring>

#include "ggml-impl.h"

namespace mikv {

Plan::Plan(Device & device, ggml_cgraph * graph, int n_threads)
    : device_(device), identity_(GraphIdentity::of(graph, n_threads)), n_threads_(n_threads), data_(device.foreign) {
    fit_heads(graph);
    nodes_.reserve(size_t(graph->n_nodes) + 64);
    graph_ = graph;
    for (at_ = 0; at_ < graph->n_nodes; at_++) {
        add(graph->nodes[at_]);
    }
    graph_ = nullptr;
    settle_all();
    for (const auto & layer : layers_) {
        if (layer->step && !layer->step->reserve()) {
            GGML_ABORT("mikv: no memory for the working buffers of a micro-batch of %d tokens: use a smaller one (-ub)",
                       layer->shape.n_tokens);
        }
    }
}

Plan::~Plan() {
    for (ggml_backend_buffer_t buffer : buffers_) {
        ggml_backend_buffer_free(buffer);
    }
}

void Plan::add(ggml_tensor * node) {
    if (done_.count(node)) {
        return;
    }
    if (moves_nothing(node->op) || !uses_cache(node)) {
        nodes_.push_back({node, nullptr});
        return;
    }
    touches_cache_ = true;
    if (add_set_rows(node) || add_attention(node)) {
        return;
    }
    only_attends_ = false;
    if (add_copy(node)) {
        return;
    }
    add_through_shadow(node);
}

Work & Plan::new_work(std::vector<const ggml_tensor *> inputs, ggml_tensor * output) {
    work_.push_back(std::make_unique<Work>());
    work_.back()->inputs = std::move(inputs);
    work_.back()->output = output;
    nodes_.push_back({nullptr, work_.back().get()});
    return *work_.back();
}

std::shared_ptr<LayerWork> Plan::layer_work(const KvTensor & tensor, const ggml_tensor * cells) {
    Cache & cache = tensor.buffer->cache(tensor);
    auto    entry = waiting_.find(&cache);
    if (entry != waiting_.end()) {
        LayerWork & layer = *entry->second;
        if (layer.tensor.index == tensor.index && !(tensor.value ? layer.has_value : layer.has_key)) {
            return entry->second;
        }
        settle(cache);
    }
    auto layer       = std::make_shared<LayerWork>();
    layer->tensor    = tensor;
    layer->cells     = cells;
    layer->begins    = !begun_[&cache];
    begun_[&cache]   = true;
    waiting_[&cache] = layer;
    layers_.push_back(layer);
    return layer;
}

bool Plan::add_set_rows(ggml_tensor * node) {
    if (!stores_rows(node)) {
        return false;
    }
    KvTensor *          kv                          = kv_tensor(node);
    const ggml_tensor * rows                        = node->src[0];
    const ggml_tensor * cells                       = node->src[1];
    const auto          layer                       = layer_work(*kv, cells);
    const bool          first                       = !layer->has_key && !layer->has_value;
    (kv->value ? layer->has_value : layer->has_key) = true;
    if (!layer->cache().staging().reserve(int(rows->ne[1]))) {
        GGML_ABORT("mikv: no memory for a micro-batch of %d tokens: use a smaller one (-ub)", int(rows->ne[1]));
    }
    Work &     work                                 = new_work({rows, cells}, nullptr);
    const bool value                                = kv->value;
    (value ? layer->stage_value : layer->stage_key) = &work;
    (value ? layer->value_rows : layer->key_rows)   = rows;
    HostData * data                                 = &data_;
    work.run                                        = [layer, value, rows, data, first, &work](int thread, int n_threads) {
        if (thread == 0 && first) {
            read_cells(*layer, data->at(layer->cells));
            layer->cache().staging().open();
        } else if (thread == 0 && layer->step) {
            layer->open(data->foreign());
        }
        stage_rows(*layer, value, rows, data->at(rows), thread, n_threads);
        if (!first && layer->step) {
            work.share(layer->step->index_items(), [&](int item) { layer->step->index(item); });
        }
    };
    return true;
}

void Plan::settle_all() {
    while (!waiting_.empty()) {
        settle(*waiting_.begin()->first);
    }
}

void Plan::settle(Cache & cache) {
    const auto layer = waiting_.at(&cache);
    waiting_.erase(&cache);
    if (!layer->has_key || !layer->has_value) {
        GGML_ABORT("mikv: layer %d stores keys without values: report the model, and run it without MIKV",
                   layer->cache().layer_number(layer->tensor.index));
    }
    Work & work = new_work({layer->cells}, nullptr);
    work.run    = [layer](int thread, int) {
        if (thread == 0) {
            commit_unattended(*layer);
        }
    };
}

bool Plan::add_copy(ggml_tensor * node) {
    if (node->op != GGML_OP_CPY && node->op != GGML_OP_CONT && node->op != GGML_OP_DUP) {
        return false;
    }
    const ggml_tensor * src  = node->src[0];
    HostData *          data = &data_;
    if (kv_tensor(src) && !kv_tensor(node) && node->type == GGML_TYPE_F32 && contiguous(node)) {
        settle_all();
        Work & work  = new_work({}, node);
        work.prepare = [node, data] { data->foreign() ? data->room_for(node) : void(); };
        work.run     = [src, node, data](int thread, int) {
            if (thread == 0) {
                load_view(src, node, data->at(node));
            }
        };
        return true;
    }
    if (!kv_tensor(src) && kv_tensor(node) && src->type == GGML_TYPE_F32 && contiguous(src)) {
        settle_all();
        Work & work = new_work({src}, nullptr);
        work.run    = [src, node, data](int thread, int) {
            if (thread == 0) {
                store_view(src, data->at(src), node);
            }
        };
        return true;
    }
    return false;
}

ggml_tensor * Plan::shadow_of(const ggml_tensor * root) {
    ggml_tensor *& shadow = shadows_[root];
    if (!shadow) {
        ggml_backend_buffer_t buffer =
            ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(device_.inner), ggml_nbytes(root));
        if (!buffer) {
            GGML_ABORT("mikv: no memory for a copy of %s: use a smaller context", root->name);
        }
        buffers_.push_back(buffer);
        tensors_.push_back(std::make_unique<ggml_tensor>(*root));
        shadow         = tensors_.back().get();
        shadow->buffer = buffer;
        shadow->data   = ggml_backend_buffer_get_base(buffer);
        shadow->extra  = nullptr;
    }
    return shadow;
}

// t itself, or its counterpart on the shadow if it is a KV tensor or a view of one.
ggml_tensor * Plan::on_shadow(ggml_tensor * t) {
    if (!t || !kv_tensor(t)) {
        return t;
    }
    ggml_tensor * shadow = shadow_of(t->view_src ? t->view_src : t);
    tensors_.push_back(std::make_unique<ggml_tensor>(*t));
    ggml_tensor * twin = tensors_.back().get();
    twin->buffer       = shadow->buffer;
    twin->data         = static_cast<char *>(shadow->data) + kv_offset(t);
    twin->view_src     = t->view_src ? shadow : nullptr;
    twin->extra        = nullptr;
    return twin;
}

// The operation on copies of the KV tensors in their logical type; rows that it changed go back.
void Plan::add_through_shadow(ggml_tensor * node) {
    settle_all();
    tensors_.push_back(std::make_unique<ggml_tensor>(*node));
    ggml_tensor *                    twin = tensors_.back().get();
    std::vector<const ggml_tensor *> roots;
    const auto                       note = [&roots](const ggml_tensor * t) {
        if (t && kv_tensor(t)) {
            roots.push_back(t->view_src ? t->view_src : t);
        }
    };
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        note(node->src[i]);
        twin->src[i] = on_shadow(node->src[i]);
    }
    note(node);
    if (kv_tensor(node)) {
        const ggml_tensor * moved = on_shadow(node);
        twin->buffer              = moved->buffer;
        twin->data                = moved->data;
        twin->view_src            = moved->view_src;
        twin->extra               = nullptr;
    }
    std::sort(roots.begin(), roots.end());
    roots.erase(std::unique(roots.begin(), roots.end()), roots.end());
    for (const ggml_tensor * root : roots) {
        ggml_tensor * shadow      = shadow_of(root);
        new_work({}, nullptr).run = [root, shadow](int thread, int) {
            if (thread == 0) {
                fill_shadow(root, shadow);
            }
        };
    }
    nodes_.push_back({twin, nullptr});
    if (const ggml_tensor * root = kv_tensor(node) ? (node->view_src ? node->view_src : node) : nullptr) {
        ggml_tensor * shadow      = shadow_of(root);
        new_work({}, nullptr).run = [root, shadow](int thread, int) {
            if (thread == 0) {
                take_back_shadow(root, shadow);
            }
        };
    }
}

} // namespace mikv
