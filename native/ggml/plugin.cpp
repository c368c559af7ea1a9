// What ggml loads: the entry point, the version guard, one MIKV device for each device present.
#include <cstring>
#include <memory>

#include "ggml-impl.h"
#include "ggml/backend.h"
#include "ggml/device.h"
#include "ggml/environment.h"
#include "store/error.h"

using namespace mikv;

namespace {

std::vector<std::unique_ptr<Device>> own_devices;

const char *       get_name(ggml_backend_reg_t) { return "MIKV"; }
size_t             get_device_count(ggml_backend_reg_t) { return own_devices.size(); }
ggml_backend_dev_t get_device(ggml_backend_reg_t, size_t index) { return &own_devices[index]->handle; }

void set_n_threads(ggml_backend_t backend, int n_threads) {
    set_threads(backend, n_threads);
    ggml_backend_t inner = inner_backend(backend);
    if (auto fn = reinterpret_cast<ggml_backend_set_n_threads_t>(inner_proc(inner->device, "ggml_backend_set_n_threads"))) {
        fn(inner, n_threads);
    }
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    ggml_backend_t inner = inner_backend(backend);
    if (auto fn =
            reinterpret_cast<ggml_backend_set_abort_callback_t>(inner_proc(inner->device, "ggml_backend_set_abort_callback"))) {
        fn(inner, callback, data);
    }
}

ggml_backend_buffer_type_t * extra_types(ggml_backend_dev_t dev) {
    Device * device = device_of(dev);
    return device ? extra_buffer_types(*device) : nullptr;
}

ggml_backend_feature * features(ggml_backend_reg_t) {
    auto fn = reinterpret_cast<ggml_backend_get_features_t>(inner_proc(own_devices[0]->inner, "ggml_backend_get_features"));
    return fn ? fn(ggml_backend_dev_backend_reg(own_devices[0]->inner)) : nullptr;
}

void * get_proc_address(ggml_backend_reg_t, const char * name) {
    if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(set_n_threads);
    }
    if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void *>(set_abort_callback);
    }
    if (std::strcmp(name, "ggml_backend_dev_get_extra_bufts") == 0) {
        return reinterpret_cast<void *>(extra_types);
    }
    if (std::strcmp(name, "ggml_backend_get_features") == 0 && inner_proc(own_devices[0]->inner, name)) {
        return reinterpret_cast<void *>(features);
    }
    return nullptr;
}

ggml_backend_reg registry = {GGML_BACKEND_API_VERSION, {get_name, get_device_count, get_device, get_proc_address}, nullptr};

bool decorates(ggml_backend_dev_t dev) {
    const enum ggml_backend_dev_type type = ggml_backend_dev_type(dev);
    return !device_of(dev) && type != GGML_BACKEND_DEVICE_TYPE_ACCEL && type != GGML_BACKEND_DEVICE_TYPE_META;
}

} // namespace

extern "C" {

// Null, with one sentence in the log, if this host or the environment's configuration will not do.
#ifdef _WIN32
__declspec(dllexport)
#endif
ggml_backend_reg_t
ggml_backend_init(void) {
    if (std::strcmp(ggml_version(), MIKV_GGML_VERSION) != 0) {
        GGML_LOG_ERROR(
            "mikv: this library was built for ggml %s and the program has ggml %s: install the mikv_cpp that fits it\n",
            MIKV_GGML_VERSION, ggml_version());
        return nullptr;
    }
    mikv_config config;
    if (config_from_environment(&config) != MIKV_OK) {
        GGML_LOG_ERROR("mikv: %s\n", last_error());
        return nullptr;
    }
    if (!own_devices.empty()) {
        return &registry;
    }
    // GPUs first, the CPU last, as llama.cpp lists devices
    for (const bool cpu : {false, true}) {
        for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
            ggml_backend_dev_t inner = ggml_backend_dev_get(i);
            if (decorates(inner) && (ggml_backend_dev_type(inner) == GGML_BACKEND_DEVICE_TYPE_CPU) == cpu) {
                own_devices.push_back(std::make_unique<Device>());
                make_device(*own_devices.back(), &registry, inner, int(own_devices.size()) - 1, config);
            }
        }
    }
    if (own_devices.empty()) {
        GGML_LOG_ERROR("mikv: the program has no device yet: load its backends before this library\n");
        return nullptr;
    }
    return &registry;
}

} // extern "C"
