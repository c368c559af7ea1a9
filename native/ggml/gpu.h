// Which GPU a MIKV device's inner device is, and whether its kernels can be trusted.
#pragma once

#include "ggml/device.h"
#include "store/gpu_cache.h"

namespace mikv {

// A queue on the inner device, or device null: no kernels of this library run there, or they failed the self-test; then the log says so, once.
// emulated: the emulator of GPU execution, over the CPU.
GpuQueue open_gpu(ggml_backend_dev_t inner, bool emulated);
bool     has_emulator(); // this build has it

// Takes a cache to the device, if there are kernels there that can work on it; else it stays, and the log says why.
void move_to_gpu(const Device & device, Cache & cache);

} // namespace mikv
