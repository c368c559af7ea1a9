#include "ggml/gpu_plan.h"

#include <algorithm>

#include "ggml/graph_identity.h"

namespace mikv {

// --- order of the queues --------------------------------------------------------------------------------------------------------

Handover::Handover(const Device & device, ggml_backend_t inner) : queue_(device.gpu), device_(device.inner), inner_(inner) {
    if (queue_.device && queue_.device->wait && device_->iface.event_new && inner->iface.event_record &&
        inner->iface.event_wait) {
        theirs_ = device_->iface.event_new(device_);
        ours_   = device_->iface.event_new(device_); // null: this build of the device has none
    }
}

Handover::~Handover() {
    for (ggml_backend_event_t event : {theirs_, ours_}) {
        if (event) {
            device_->iface.event_free(device_, event);
        }
    }
}

int Handover::to_ours() {
    if (!theirs_ || !ours_) {
        ggml_backend_synchronize(inner_);
        return gpu_ok;
    }
    inner_->iface.event_record(inner_, theirs_);
    return queue_.device->wait(queue_.queue, theirs_->context);
}

int Handover::to_inner() {
    if (!theirs_ || !ours_) {
        return queue_.device->finish(queue_.queue);
    }
    const int error = queue_.device->record(queue_.queue, ours_->context);
    inner_->iface.event_wait(inner_, ours_);
    return error;
}

// --- memory for the inner device's attention --------------------------------------------------------------------------------------

bool LoadedRows::grow(ggml_backend_dev_t inner, size_t size_bytes) {
    if (size_bytes > size_bytes_) {
        release();
        buffer_     = ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(inner), size_bytes);
        size_bytes_ = buffer_ ? size_bytes : 0;
    }
    return size_bytes <= size_bytes_;
}

void LoadedRows::release() {
    if (buffer_) {
        ggml_backend_buffer_free(buffer_);
    }
    buffer_     = nullptr;
    size_bytes_ = 0;
}

// --- the plan -------------------------------------------------------------------------------------------------------------------

GpuPlan::~GpuPlan() {
    for (const auto & mapping : mappings_) {
        if (mapping.second.base) {
            device_.gpu.device->unmap(device_.gpu.queue, mapping.second.token);
        }
    }
}

std::unique_ptr<GpuPlan> GpuPlan::make(Device & device, ggml_cgraph * graph, LoadedRows & loaded, std::string * why) {
    std::unique_ptr<GpuPlan> plan(new GpuPlan(device));
    plan->identity_ = GraphIdentity::of(graph, 0);
    plan->pieces_.emplace_back();
    fit_heads(graph);
    bool good = true;
    for (int i = 0; i < graph->n_nodes && good; i++) {
        good = plan->add(graph->nodes[i]);
    }
    good = good && plan->finish(loaded);
    *why = plan->why_;
    return good ? std::move(plan) : nullptr;
}

void GpuPlan::add_node(ggml_tensor * node) {
    if (!pieces_.back().work.empty() && !moves_nothing(node->op)) {
        pieces_.emplace_back();
    }
    if (pieces_.back().work.empty()) { // else it moves nothing, and nobody misses it
        pieces_.back().nodes.push_back(node);
        pieces_.back().empty = pieces_.back().empty && moves_nothing(node->op);
    }
}

void GpuPlan::add_work(std::function<int()> work) { pieces_.back().work.push_back(std::move(work)); }

bool GpuPlan::add(ggml_tensor * node) {
    if (moves_nothing(node->op) || !uses_cache(node)) {
        add_node(node);
        return true;
    }
    if (stores_rows(node)) {
        return add_rows(node);
    }
    if (attends_layer(node)) {
        return add_attention(node);
    }
    return refuse(ggml_op_name(node->op));
}

// Where kernels find a tensor; null: they cannot reach it.
const void * GpuPlan::address(const ggml_tensor * t) {
    ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    if (!buffer || !t->data || !ggml_backend_dev_supports_buft(device_.inner, buffer->buft)) {
        return nullptr;
    }
    const GpuQueue & gpu = device_.gpu;
    if (!gpu.device->map) {
        return t->data;
    }
    void *    base    = ggml_backend_buffer_get_base(buffer);
    Mapping & mapping = mappings_[buffer];
    if (!mapping.base) {
        mapping.base = static_cast<char *>(gpu.device->map(gpu.queue, base, buffer->size, &mapping.token));
    }
    return mapping.base ? mapping.base + (static_cast<char *>(t->data) - static_cast<char *>(base)) : nullptr;
}

GpuRows GpuPlan::rows_of(const ggml_tensor * t, int64_t token, int64_t head, int64_t stream) {
    GpuRows r;
    r.rows         = static_cast<const uint8_t *>(address(t));
    r.token_bytes  = token;
    r.head_bytes   = head;
    r.stream_bytes = stream;
    r.half         = t->type == GGML_TYPE_F16;
    return r;
}

bool GpuPlan::add_rows(ggml_tensor * node) {
    const KvTensor &    kv    = *kv_tensor(node);
    const ggml_tensor * rows  = node->src[0];
    const ggml_tensor * cells = node->src[1];
    GpuCache *          gpu   = kv.buffer->gpu(kv);
    if (!gpu) {
        return refuse("a cache that is on the CPU");
    }
    if (cells->type != GGML_TYPE_I64 || cells->nb[0] != sizeof(int64_t) || rows->nb[0] != ggml_type_size(rows->type) ||
        (rows->type != GGML_TYPE_F32 && rows->type != GGML_TYPE_F16) || !address(rows) || !address(cells)) {
        return refuse("rows or cells that kernels cannot read");
    }
    std::shared_ptr<Layer> & layer = waiting_[gpu];
    if (layer && (layer->index != kv.index || layer->rows[kv.value])) {
        return refuse("rows of a layer that no attention waits for");
    }
    if (!layer) {
        layer         = std::make_shared<Layer>();
        layer->index  = kv.index;
        layer->cells  = cells;
        layer->begins = begun_.insert(gpu).second;
        layers_.push_back(layer);
    }
    layer->rows[kv.value]               = rows;
    const std::shared_ptr<Layer> kept   = layer;
    const bool                   value  = kv.value;
    const size_t                 item   = ggml_type_size(rows->type);
    const mikv_shape &           shape  = gpu->cache().shape();
    const int64_t                head   = int64_t(item) * (value ? shape.head_dim_v : shape.head_dim_k);
    const GpuRows                source = rows_of(rows, int64_t(rows->nb[1]), head, 0);
    add_work([kept, value, source] {
        GpuRows r      = source;
        r.stream_bytes = r.token_bytes * kept->shape.n_tokens;
        return kept->step->enter(value, r);
    });
    return true;
}

bool GpuPlan::add_attention(ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1];
    const KvTensor &   key = *kv_tensor(k);
    GpuCache *         gpu = key.buffer->gpu(key);
    if (!gpu) {
        return refuse("a cache that is on the CPU");
    }
    std::shared_ptr<Layer> layer;
    const auto             entry = waiting_.find(gpu);
    if (entry != waiting_.end()) {
        layer = entry->second;
        waiting_.erase(entry);
        if (layer->index != key.index || !layer->rows[0] || !layer->rows[1] || layer->cells->ne[0] != q->ne[1] * q->ne[3]) {
            return refuse("attention over rows of two layers");
        }
    } else {
        layer        = std::make_shared<Layer>();
        layer->index = key.index;
        layers_.push_back(layer);
    }
    layer->shape = {key.index,     int(q->ne[3]), first_stream_of(k),     int(q->ne[1]),
                    int(k->ne[1]), int(q->ne[2]), layer->cells != nullptr};
    layer->step  = std::make_unique<GpuStep>(*gpu, layer->shape);
    if (!layer->step->few() && !add_inner_attention(*layer, node)) {
        return false;
    }
    if (!bind(*layer, node)) {
        return false;
    }
    add_work([layer] {
        const int error = layer->begins ? layer->step->begin(layer->data) : gpu_ok;
        return error ? error : layer->step->attend(layer->data);
    });
    if (layer->attention) {
        add_node(layer->attention);
    }
    if (std::find(caches_.begin(), caches_.end(), gpu) == caches_.end()) {
        caches_.push_back(gpu);
    }
    return true;
}

bool GpuPlan::bind(Layer & layer, ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *mask = node->src[3], *sinks = node->src[4];
    GpuStepData &      d = layer.data;
    d.q                  = rows_of(q, int64_t(q->nb[1]), int64_t(q->nb[2]), int64_t(q->nb[3]));
    d.out                = static_cast<float *>(const_cast<void *>(address(node)));
    bool good            = d.q.rows && d.out && contiguous(node);
    if (mask) {
        d.mask        = static_cast<const uint16_t *>(address(mask));
        d.mask_token  = int64_t(mask->nb[1] / sizeof(uint16_t));
        d.mask_stream = mask->ne[3] == 1 ? 0 : int64_t(mask->nb[3] / sizeof(uint16_t));
        good          = good && d.mask && mask->type == GGML_TYPE_F16;
    }
    if (sinks) {
        d.sinks = static_cast<const float *>(address(sinks));
        good    = good && d.sinks && sinks->type == GGML_TYPE_F32;
    }
    if (layer.cells) {
        d.cells      = static_cast<const int64_t *>(address(layer.cells));
        d.cells_last = !overlap(layer.cells, node);
        good         = good && d.cells;
    }
    d.scale    = op_float(node, 0);
    d.max_bias = op_float(node, 1);
    d.softcap  = op_float(node, 2);
    return good || refuse("attention over tensors that kernels cannot read");
}

// f16 [head_dim, n_kv, n_head_kv, n_stream]; where, is decided when all layers are known.
ggml_tensor * GpuPlan::loaded_tensor(const ggml_tensor * like) {
    tensors_.push_back(std::make_unique<ggml_tensor>(*like));
    ggml_tensor * t = tensors_.back().get();
    t->type         = GGML_TYPE_F16;
    t->op           = GGML_OP_NONE;
    t->view_src     = nullptr;
    t->extra        = nullptr;
    t->buffer       = nullptr;
    t->data         = nullptr;
    t->flags        = 0;
    for (ggml_tensor *& src : t->src) {
        src = nullptr;
    }
    t->nb[0] = sizeof(uint16_t);
    for (int i = 1; i < 4; i++) {
        t->nb[i] = t->nb[i - 1] * size_t(t->ne[i - 1]);
    }
    return t;
}

bool GpuPlan::add_inner_attention(Layer & layer, const ggml_tensor * node) {
    layer.keys   = loaded_tensor(node->src[1]);
    layer.values = loaded_tensor(node->src[2]);
    tensors_.push_back(std::make_unique<ggml_tensor>(*node));
    ggml_tensor * twin = tensors_.back().get();
    twin->src[1]       = layer.keys;
    twin->src[2]       = layer.values;
    layer.attention    = twin;
    return ggml_backend_dev_supports_op(device_.inner, twin) ||
           refuse("attention over f16 that the inner device does not know");
}

bool GpuPlan::finish(LoadedRows & loaded) {
    if (!waiting_.empty()) {
        return refuse("rows that no attention waits for");
    }
    size_t most = 0;
    for (const auto & layer : layers_) {
        if (!layer->step->reserve()) {
            return refuse("no room for a micro-batch on the device");
        }
        most = layer->keys ? std::max(most, ggml_nbytes(layer->keys) + 256 + ggml_nbytes(layer->values)) : most;
    }
    for (const auto & layer : layers_) { // the largest step has made the scratch grow: now it stays
        layer->step->reserve();
    }
    if (most && !loaded.grow(device_.inner, most)) {
        return refuse("no room on the device for one layer in f16");
    }
    for (const auto & layer : layers_) {
        if (!layer->keys) {
            continue;
        }
        char * base           = static_cast<char *>(ggml_backend_buffer_get_base(loaded.buffer()));
        layer->keys->buffer   = loaded.buffer();
        layer->keys->data     = base;
        layer->values->buffer = loaded.buffer();
        layer->values->data   = base + (ggml_nbytes(layer->keys) + 255) / 256 * 256;
        layer->data.loaded.k  = static_cast<uint16_t *>(const_cast<void *>(address(layer->keys)));
        layer->data.loaded.v  = static_cast<uint16_t *>(const_cast<void *>(address(layer->values)));
        if (!layer->data.loaded.k || !layer->data.loaded.v) {
            return refuse("memory of the device that kernels cannot reach");
        }
    }
    if (!caches_.empty()) {
        caches_.front()->note_loaded(int64_t(loaded.size_bytes()));
    }
    return true;
}

ggml_status GpuPlan::compute(const ggml_cgraph & graph, ggml_backend_t inner, Handover & handover) {
    bool theirs = true, ours = false; // has queued something that the other must wait for
    int  error = gpu_ok;
    for (GpuCache * cache : caches_) {
        error = error ? error : cache->bring_back();
    }
    for (Piece & piece : pieces_) {
        if (!piece.empty && !error) {
            error                    = ours ? handover.to_inner() : gpu_ok;
            ggml_cgraph part         = with_nodes(graph, piece.nodes.data(), int(piece.nodes.size()));
            part.uid                 = graph.uid; // the nodes are the same as long as this plan is
            const ggml_status status = ggml_backend_graph_compute_async(inner, &part);
            if (status != GGML_STATUS_SUCCESS) {
                return status;
            }
            theirs = true;
            ours   = false;
        }
        if (!piece.work.empty() && !error) {
            error  = theirs ? handover.to_ours() : gpu_ok;
            theirs = false;
            ours   = true;
        }
        for (const auto & work : piece.work) {
            error = error ? error : work();
        }
    }
    error = !error && ours ? handover.to_inner() : error;
    if (error) {
        GGML_LOG_ERROR("mikv: %s: %s\n", device_.name.c_str(),
                       error == gpu_failed ? "no memory left on the device" : device_.gpu.device->explain(error));
        return GGML_STATUS_FAILED;
    }
    return GGML_STATUS_SUCCESS;
}

} // namespace mikv
