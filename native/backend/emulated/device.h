// The kernels on the emulator of GPU execution.
#pragma once

#include "backend/gpu/device.h"

namespace mikv {

// queue: an EmulatorReport, which takes the faults; memory is then watched unless the report says otherwise, so that emulator_watch() must know all
// of it. Or null: nothing is watched.
extern const GpuDevice emulated_device;

} // namespace mikv
