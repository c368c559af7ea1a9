#include "ggml/gpu.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "ggml-impl.h"
#include "store/gpu_verdict.h"
#if defined(MIKV_CUDA)
#include "backend/cuda/device.h"
#endif
#if defined(MIKV_METAL)
#include "backend/metal/device.h"
#endif
#if defined(MIKV_EMULATED_GPU)
#include "backend/emulated/device.h"
#endif

namespace mikv {

namespace {

// By the name of the registry that offers the device; null: nobody's.
const GpuDevice * device_for(ggml_backend_dev_t inner, [[maybe_unused]] bool emulated) {
    [[maybe_unused]] const char * registry = ggml_backend_reg_name(ggml_backend_dev_backend_reg(inner));
#if defined(MIKV_EMULATED_GPU)
    if (emulated) {
        return &emulated_device;
    }
#endif
#if defined(MIKV_CUDA)
    if (std::strcmp(registry, "CUDA") == 0) {
        return &cuda_device;
    }
#endif
#if defined(MIKV_METAL)
    const bool metal = std::strcmp(registry, "MTL") == 0 || std::strcmp(registry, "Metal") == 0;
    if (metal && !std::strstr(ggml_backend_buft_name(ggml_backend_dev_buffer_type(inner)), "Private")) {
        return &metal_device; // private memory has addresses that say nothing to us
    }
#endif
    return nullptr;
}

} // namespace

bool has_emulator() {
#if defined(MIKV_EMULATED_GPU)
    return true;
#else
    return false;
#endif
}

GpuQueue open_gpu(ggml_backend_dev_t inner, bool emulated) {
    const GpuDevice * device = device_for(inner, emulated);
    const char *      wanted = std::getenv("MIKV_GPU");
    if (!device || (wanted && std::strcmp(wanted, "0") == 0)) {
        return {nullptr, nullptr};
    }
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(inner, &props);
    const GpuQueue queue = {device, device->open(props.device_id)};
    if (!queue.queue) {
        GGML_LOG_WARN(
            "mikv: %s: its kernels cannot be run here (no driver, or another architecture): attention over the cache goes "
            "through the CPU\n",
            props.name);
        return {nullptr, nullptr};
    }
    const std::string fault = gpu_verdict(queue);
    if (!fault.empty()) {
        GGML_LOG_WARN(
            "mikv: %s: self-test failed (%s): attention over the cache goes through the CPU; please report this line\n",
            props.name, fault.c_str());
        device->close(queue.queue);
        return {nullptr, nullptr};
    }
    return queue;
}

void move_to_gpu(const Device & device, Cache & cache) {
    if (!device.gpu.device) {
        return;
    }
    std::string why = gpu_refusal(cache);
    if (why.empty() && !GpuCache::move(device.gpu, cache)) {
        why = "the device has no room for it";
    }
    if (!why.empty()) {
        GGML_LOG_WARN("mikv: %s: attention over this cache goes through the CPU: %s\n", device.name.c_str(), why.c_str());
    }
}

} // namespace mikv
