#include "ggml/backend.h"

#include "ggml/buffer.h"
#include "ggml/graph.h"

namespace mikv {

namespace {

struct Stream {
    Device *       device;
    ggml_backend_t inner;
    GraphRunner    graphs;
    int            n_threads = GGML_DEFAULT_N_THREADS;
};

Stream * of(ggml_backend_t backend) { return static_cast<Stream *>(backend->context); }

ggml_guid_t guid() {
    static ggml_guid id = {0x6d, 0x69, 0x6b, 0x76, 0x2d, 0x63, 0x70, 0x70, 0x2d, 0x62, 0x61, 0x63, 0x6b, 0x65, 0x6e, 0x64};
    return &id;
}

const char * get_name(ggml_backend_t backend) { return of(backend)->device->name.c_str(); }

void free_backend(ggml_backend_t backend) {
    ggml_backend_t inner = of(backend)->inner;
    delete of(backend);
    ggml_backend_free(inner);
    delete backend;
}

void synchronize(ggml_backend_t backend) { ggml_backend_synchronize(of(backend)->inner); }

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    Stream * s = of(backend);
    return s->graphs.compute(graph, s->n_threads);
}

// KV tensors are on the host side of this plug-in; everything else is the inner device's.
void set_tensor_async(ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    if (kv_tensor(tensor)) {
        synchronize(backend);
        ggml_backend_tensor_set(tensor, data, offset, size);
    } else {
        of(backend)->inner->iface.set_tensor_async(of(backend)->inner, tensor, data, offset, size);
    }
}

void get_tensor_async(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    if (kv_tensor(tensor)) {
        synchronize(backend);
        ggml_backend_tensor_get(tensor, data, offset, size);
    } else {
        of(backend)->inner->iface.get_tensor_async(of(backend)->inner, tensor, data, offset, size);
    }
}

bool cpy_tensor_async(ggml_backend_t from, ggml_backend_t to, const ggml_tensor * src, ggml_tensor * dst) {
    if (kv_tensor(src) || kv_tensor(dst)) {
        return false;
    }
    ggml_backend_t inner_from = is_backend(from) ? of(from)->inner : from;
    ggml_backend_t inner_to   = is_backend(to) ? of(to)->inner : to;
    return inner_to->iface.cpy_tensor_async && inner_to->iface.cpy_tensor_async(inner_from, inner_to, src, dst);
}

void event_record(ggml_backend_t backend, ggml_backend_event_t event) {
    of(backend)->inner->iface.event_record(of(backend)->inner, event);
}
void event_wait(ggml_backend_t backend, ggml_backend_event_t event) {
    of(backend)->inner->iface.event_wait(of(backend)->inner, event);
}

void graph_optimize(ggml_backend_t backend, ggml_cgraph * graph, ggml_backend_graph_optimize_params * params) {
    of(backend)->inner->iface.graph_optimize(of(backend)->inner, graph, params);
}

} // namespace

bool is_backend(ggml_backend_t backend) { return backend && backend->iface.get_name == get_name; }

ggml_backend_t inner_backend(ggml_backend_t backend) { return of(backend)->inner; }

void set_threads(ggml_backend_t backend, int n_threads) { of(backend)->n_threads = n_threads; }

ggml_backend_t make_backend(Device & device, const char * params) {
    ggml_backend_t inner = ggml_backend_dev_init(device.inner, params);
    if (!inner) {
        return nullptr;
    }
    const ggml_backend_i & has = inner->iface;
    ggml_backend_i         iface{};
    iface.get_name         = get_name;
    iface.free             = free_backend;
    iface.set_tensor_async = has.set_tensor_async ? set_tensor_async : nullptr;
    iface.get_tensor_async = has.get_tensor_async ? get_tensor_async : nullptr;
    iface.cpy_tensor_async = has.cpy_tensor_async ? cpy_tensor_async : nullptr;
    iface.synchronize      = has.synchronize ? synchronize : nullptr;
    iface.graph_compute    = graph_compute;
    iface.event_record     = has.event_record ? event_record : nullptr;
    iface.event_wait       = has.event_wait ? event_wait : nullptr;
    iface.graph_optimize   = has.graph_optimize ? graph_optimize : nullptr;
    return new ggml_backend{guid(), iface, &device.handle, new Stream{&device, inner, GraphRunner(device, inner)}};
}

} // namespace mikv
