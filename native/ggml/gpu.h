// Which GPU a MIKV device's inner device is, and whether its kernels can be trusted.
#pragma once

#include "backend/gpu/device.h"
#include "ggml-backend-impl.h"

namespace mikv {

// A queue on the inner device, or device null: no kernels of this library run there, or they failed the self-test; then the log says so, once.
// emulated: the emulator of GPU execution, over the CPU.
GpuQueue open_gpu(ggml_backend_dev_t inner, bool emulated);
bool     has_emulator(); // this build has it

} // namespace mikv
