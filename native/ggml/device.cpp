#include "ggml/device.h"

#include <cstring>

#include "ggml/backend.h"
#include "ggml/buffer.h"

namespace mikv {

namespace {

Device * of(ggml_backend_dev_t dev) { return static_cast<Device *>(dev->context); }

// --- the buffer type that llama.cpp asks ---------------------------------------------------------------------------------------
// A KV cache is recognised by the names of the tensors whose sizes are asked for just before a buffer of exactly their sum is wanted.
// Another tensor's size in between means that it was only a question (llama.cpp estimates memory that way).

thread_local std::vector<WantedTensor> wanted;
thread_local Device *                  wanted_by = nullptr;

Device * of_asked(ggml_backend_buffer_type_t buft) { return static_cast<Device *>(buft->context); }

ggml_backend_buffer_type_t inner_type(Device * device) { return ggml_backend_dev_buffer_type(device->inner); }

const char * asked_name(ggml_backend_buffer_type_t buft) { return of_asked(buft)->name.c_str(); }
size_t       asked_alignment(ggml_backend_buffer_type_t buft) {
    const size_t inner = ggml_backend_buft_get_alignment(inner_type(of_asked(buft)));
    return inner > 64 ? inner : 64;
}
size_t asked_max_size(ggml_backend_buffer_type_t buft) { return ggml_backend_buft_get_max_size(inner_type(of_asked(buft))); }
bool   asked_is_host(ggml_backend_buffer_type_t buft) { return ggml_backend_buft_is_host(inner_type(of_asked(buft))); }

size_t padded(size_t size, size_t alignment) { return (size + alignment - 1) / alignment * alignment; }

size_t asked_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor * t) {
    Device * device = of_asked(buft);
    int      layer  = 0;
    bool     value  = false;
    if (t->view_src || !parse_kv_name(t->name, &layer, &value)) {
        wanted.clear();
        return ggml_backend_buft_get_alloc_size(inner_type(device), t);
    }
    if (wanted_by != device) {
        wanted.clear();
        wanted_by = device;
    }
    for (const WantedTensor & w : wanted) { // asked again from the start
        if (w.layer == layer && w.value == value) {
            wanted.clear();
            break;
        }
    }
    const size_t size = kv_tensor_bytes(device->config, t);
    wanted.push_back({layer, value, t->type, t->ne[0], t->ne[1], t->ne[2], padded(size, asked_alignment(buft)),
                      padded(ggml_backend_buft_get_alloc_size(inner_type(device), t), asked_alignment(buft))});
    return size;
}

ggml_backend_buffer_t asked_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    Device * device = of_asked(buft);
    size_t   sum    = 0;
    for (const WantedTensor & w : wanted) {
        sum += w.size_bytes;
    }
    const std::vector<WantedTensor> cache = wanted;
    wanted.clear();
    if (cache.empty() || wanted_by != device || sum != size) {
        std::lock_guard<std::recursive_mutex> lock(device->guard);
        device->family.clear(); // weights or a graph's buffers: the next cache is another context's
        return ggml_backend_buft_alloc_buffer(inner_type(device), size);
    }
    return KvBuffer::allocate(*device, cache, size);
}

// --- the device ------------------------------------------------------------------------------------------------------------------

const char * get_name(ggml_backend_dev_t dev) { return of(dev)->name.c_str(); }
const char * get_description(ggml_backend_dev_t dev) { return of(dev)->description.c_str(); }
void get_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) { ggml_backend_dev_memory(of(dev)->inner, free, total); }

// A CPU passes for an integrated GPU: llama.cpp gives it layers when asked to, or when there is no other device, but never beside a GPU
// that nobody asked it to share with.
enum ggml_backend_dev_type get_type(ggml_backend_dev_t dev) {
    const enum ggml_backend_dev_type type = ggml_backend_dev_type(of(dev)->inner);
    return type == GGML_BACKEND_DEVICE_TYPE_CPU ? GGML_BACKEND_DEVICE_TYPE_IGPU : type;
}

void get_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    ggml_backend_dev_get_props(of(dev)->inner, props);
    props->name        = get_name(dev);
    props->description = get_description(dev);
    props->type        = get_type(dev);
}

ggml_backend_t init_backend(ggml_backend_dev_t dev, const char * params) { return make_backend(*of(dev), params); }

ggml_backend_buffer_type_t get_buffer_type(ggml_backend_dev_t dev) { return &of(dev)->asked; }

ggml_backend_buffer_type_t get_host_buffer_type(ggml_backend_dev_t dev) {
    ggml_backend_dev_t inner = of(dev)->inner;
    return inner->iface.get_host_buffer_type ? inner->iface.get_host_buffer_type(inner) : nullptr;
}

ggml_backend_buffer_t buffer_from_host_ptr(ggml_backend_dev_t dev, void * ptr, size_t size, size_t max_tensor_size) {
    ggml_backend_dev_t inner = of(dev)->inner;
    return inner->iface.buffer_from_host_ptr ? inner->iface.buffer_from_host_ptr(inner, ptr, size, max_tensor_size) : nullptr;
}

// Would one of the inner device's extra buffer types (repacked weights) take this matrix? llama.cpp tries a GPU's plain type first and a
// CPU's last; refusing what repacking would take keeps the CPU's order.
bool wants_extra_type(Device * device, const ggml_tensor * op) {
    const ggml_tensor * weight = op->src[0];
    if ((op->op != GGML_OP_MUL_MAT && op->op != GGML_OP_MUL_MAT_ID) || !weight || !weight->buffer ||
        weight->buffer->buft != &device->asked) {
        return false;
    }
    for (ggml_backend_buffer_type_t * type = extra_buffer_types(*device); type && *type; type++) {
        ggml_backend_buffer_t dummy = ggml_backend_buft_alloc_buffer(*type, 0);
        ggml_tensor           with = *weight, probe = *op;
        with.buffer      = dummy;
        probe.src[0]     = &with;
        const bool takes = ggml_backend_dev_supports_op(device->inner, &probe);
        ggml_backend_buffer_free(dummy);
        if (takes) {
            return true;
        }
    }
    return false;
}

bool supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    Device * device = of(dev);
    if (wants_extra_type(device, op)) {
        return false;
    }
    if (op->op == GGML_OP_FLASH_ATTN_EXT && op->src[1] && op->src[2]) { // the first sight of the head sizes
        const KvTensor * key   = kv_tensor(op->src[1]);
        const KvTensor * value = kv_tensor(op->src[2]);
        if (key && value) {
            key->buffer->fit_heads(*key, int(op->src[1]->ne[0]), int(op->src[2]->ne[0]));
            return true;
        }
    }
    return ggml_backend_dev_supports_op(device->inner, op);
}

bool supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    Device * device = of(dev);
    return buft == &device->asked || buft == &device->owned || ggml_backend_dev_supports_buft(device->inner, buft);
}

bool offload_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    ggml_backend_dev_t inner = of(dev)->inner;
    return inner->iface.offload_op && inner->iface.offload_op(inner, op);
}

ggml_backend_event_t event_new(ggml_backend_dev_t dev) {
    ggml_backend_dev_t inner = of(dev)->inner;
    return inner->iface.event_new ? inner->iface.event_new(inner) : nullptr;
}

void event_free(ggml_backend_dev_t dev, ggml_backend_event_t event) { of(dev)->inner->iface.event_free(of(dev)->inner, event); }
void event_synchronize(ggml_backend_dev_t dev, ggml_backend_event_t event) {
    of(dev)->inner->iface.event_synchronize(of(dev)->inner, event);
}

} // namespace

void * inner_proc(ggml_backend_dev_t inner, const char * name) {
    return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(inner), name);
}

ggml_backend_buffer_type_t * extra_buffer_types(const Device & device) {
    auto types =
        reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(inner_proc(device.inner, "ggml_backend_dev_get_extra_bufts"));
    return types ? types(device.inner) : nullptr;
}

Device * device_of(ggml_backend_dev_t handle) { return handle && handle->iface.get_name == get_name ? of(handle) : nullptr; }

void make_device(Device & device, ggml_backend_reg_t reg, ggml_backend_dev_t inner, const std::string & name,
                 const mikv_config & config, const GpuQueue & gpu) {
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(inner, &props);
    device.inner = inner;
    device.name  = name;
    device.gpu   = gpu;
    device.description =
        std::string("mixed-precision KV cache on ") + ggml_backend_dev_name(inner) + ": " + ggml_backend_dev_description(inner);
    device.foreign       = gpu.device || props.caps.async || !ggml_backend_buft_is_host(ggml_backend_dev_buffer_type(inner));
    device.config        = config;
    device.asked.iface   = {asked_name, asked_alloc_buffer, asked_alignment, asked_max_size, asked_alloc_size, asked_is_host};
    device.asked.device  = &device.handle;
    device.asked.context = &device;
    init_owned_type(device);
    const bool host_type  = inner->iface.get_host_buffer_type != nullptr;
    device.handle.iface   = {get_name,
                             get_description,
                             get_memory,
                             get_type,
                             get_props,
                             init_backend,
                             get_buffer_type,
                           host_type ? get_host_buffer_type : nullptr,
                           inner->iface.buffer_from_host_ptr ? buffer_from_host_ptr : nullptr,
                             supports_op,
                             supports_buft,
                           inner->iface.offload_op ? offload_op : nullptr,
                           inner->iface.event_new ? event_new : nullptr,
                           inner->iface.event_free ? event_free : nullptr,
                           inner->iface.event_synchronize ? event_synchronize : nullptr};
    device.handle.reg     = reg;
    device.handle.context = &device;
}

} // namespace mikv
