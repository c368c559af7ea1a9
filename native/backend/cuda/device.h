// The kernels on NVIDIA's GPUs.
#pragma once

#include "backend/gpu/device.h"

namespace mikv {

// A queue is a stream of ours on the device's primary context, which the host program's CUDA uses too: its events and addresses are good here.
extern const GpuDevice cuda_device;

} // namespace mikv
