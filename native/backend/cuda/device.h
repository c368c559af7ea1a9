// The kernels on NVIDIA's GPUs.
#pragma once

#include "backend/gpu/device.h"

namespace mikv {

// queue: a cudaStream_t of the device that is current in the calling thread; null: its default stream.
extern const GpuDevice cuda_device;

} // namespace mikv
