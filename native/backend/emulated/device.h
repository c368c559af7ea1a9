// The kernels on the emulator of GPU execution.
#pragma once

#include "backend/gpu/device.h"

namespace mikv {

// A queue is an EmulatorReport, which takes the faults. In those of open() memory is not watched, for kernels
// may use what a host program allocated, and work is done when the host waits for it, as late as on a GPU. In
// a test's own it is, unless the report says otherwise, and emulator_watch() must know all of it. The environment's MIKV_EMULATED_FAULT, a kernel's
// name, leaves that kernel out: a seeded fault, for those who must notice.
extern const GpuDevice emulated_device;

} // namespace mikv
