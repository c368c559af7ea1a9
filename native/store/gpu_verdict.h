// Whether a device's kernels passed the self-test, remembered between processes: for a device, its driver and the kernels' text.
#pragma once

#include <string>

#include "backend/gpu/device.h"

namespace mikv {

// What was wrong, in one line; empty: nothing. Only a pass is remembered, in a file of a few bytes in ${XDG_CACHE_HOME:-~/.cache}/mikv_cpp (macOS:
// ~/Library/Caches, Windows: %LOCALAPPDATA%); where there is no such folder, each process tests anew. MIKV_GPU=test tests anew as well.
std::string gpu_verdict(const GpuQueue & queue);

} // namespace mikv
