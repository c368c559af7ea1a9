// The kernels on Apple's GPUs. Written by Metal's documentation and type-checked on Linux; never built or run by the project itself.
#pragma once

#include "backend/gpu/device.h"

namespace mikv {

// A queue is a command queue of ours with one serial encoder. Nothing orders it with the host program's queues but the host, which waits for each
// before it goes on with the other: the cheapest way that is safe. Better, once it can be measured: an MTLSharedEvent that both signal.
// Memory is shared with the CPU; that of the host program is wrapped in a buffer of ours, without a copy.
extern const GpuDevice metal_device;

} // namespace mikv
