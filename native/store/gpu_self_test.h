// Golden cases: a small cache on the device beside one on the CPU, through the same micro-batches. Takes milliseconds on a GPU.
#pragma once

#include <string>

#include "backend/gpu/device.h"

namespace mikv {

// What was wrong, in one line; empty: nothing.
std::string gpu_self_test(const GpuQueue & queue);

} // namespace mikv
