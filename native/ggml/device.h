// MIKV devices: each decorates another device, passes everything through to it, and keeps the KV cache to itself.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "backend/gpu/device.h"
#include "ggml-backend-impl.h"
#include "include/mikv.h"

namespace mikv {

class KvBuffer;

// A tensor whose size llama.cpp asked for just now, by the name that it gives to the KV cache.
struct WantedTensor {
    int       layer;
    bool      value;
    ggml_type type;
    int64_t   n_embd;  // ne[0]
    int64_t   n_cells; // ne[1]
    int64_t   n_stream;
    size_t    size_bytes; // what get_alloc_size answered, padded
    size_t    logical_bytes;
};

struct Device {
    ggml_backend_device handle{}; // what ggml sees
    ggml_backend_dev_t  inner = nullptr;
    std::string         name; // "MIKV0"
    std::string         description;
    ggml_backend_buffer_type
        asked{}; // the device's buffer type: asked for sizes; makes KV buffers and, for all else, the inner device's
    ggml_backend_buffer_type owned{};               // the type of KV buffers
    GpuQueue                 gpu{nullptr, nullptr}; // kernels of ours on the inner device, or null
    bool                     foreign = false; // the host cannot touch the inner device's memory, or it runs asynchronously

    std::recursive_mutex    guard;
    mikv_config             config{};
    std::string             note; // why the newest cache was passed through
    std::vector<KvBuffer *> buffers;
    std::vector<int>        family; // layers of the caches that belong to one context, so far
    int64_t                 family_cells = 0;
};

Device * device_of(ggml_backend_dev_t handle); // null: not one of ours

void * inner_proc(ggml_backend_dev_t inner, const char * name); // what the inner device's registry offers; null: nothing
ggml_backend_buffer_type_t * extra_buffer_types(const Device & device); // the inner device's, null-terminated; null: none

// Fills in the interfaces of a device that decorates `inner`. gpu: kernels of ours there, or null.
void make_device(Device & device, ggml_backend_reg_t reg, ggml_backend_dev_t inner, const std::string & name,
                 const mikv_config & config, const GpuQueue & gpu);

} // namespace mikv
