// The part of the C API that is about ggml's devices.
#include <algorithm>
#include <cstring>

#include "ggml/buffer.h"
#include "store/error.h"

using namespace mikv;

namespace {

mikv_status no_device() {
    return fail(MIKV_ERROR_NOT_FOUND, "this is not a MIKV device: use ggml_backend_dev_by_name(\"MIKV0\")");
}

} // namespace

extern "C" {

const char * mikv_ggml_version(void) { return MIKV_GGML_VERSION; }

mikv_status mikv_device_configure(void * handle, const mikv_config * config) {
    Device * device = device_of(static_cast<ggml_backend_dev_t>(handle));
    if (!device) {
        return no_device();
    }
    if (mikv_status status = check_config(*config)) {
        return status;
    }
    std::lock_guard<std::recursive_mutex> lock(device->guard);
    device->config = *config;
    return succeed();
}

mikv_status mikv_device_config(void * handle, mikv_config * config) {
    Device * device = device_of(static_cast<ggml_backend_dev_t>(handle));
    if (!device) {
        return no_device();
    }
    std::lock_guard<std::recursive_mutex> lock(device->guard);
    *config = device->config;
    return succeed();
}

int32_t mikv_device_caches(void * handle, uint64_t * ids, int32_t capacity) {
    Device * device = device_of(static_cast<ggml_backend_dev_t>(handle));
    if (!device) {
        no_device();
        return 0;
    }
    std::lock_guard<std::recursive_mutex> lock(device->guard);
    std::vector<uint64_t>                 all;
    for (KvBuffer * buffer : device->buffers) {
        for (size_t i = 0; i < buffer->n_caches(); i++) {
            all.push_back(buffer->cache_at(i).id());
        }
    }
    std::sort(all.begin(), all.end());
    std::copy_n(all.begin(), std::min(all.size(), size_t(std::max(capacity, 0))), ids);
    return int32_t(all.size());
}

const char * mikv_device_note(void * handle) {
    Device *                        device = device_of(static_cast<ggml_backend_dev_t>(handle));
    static thread_local std::string note;
    note.clear();
    if (device) {
        std::lock_guard<std::recursive_mutex> lock(device->guard);
        note = device->note;
    }
    return note.c_str();
}

const char * mikv_device_inner(void * handle) {
    Device * device = device_of(static_cast<ggml_backend_dev_t>(handle));
    return device ? ggml_backend_dev_name(device->inner) : "";
}

} // extern "C"
