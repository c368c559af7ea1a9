// Which policies GPU kernels know, and how they call them.
#pragma once

#include "kernel/gpu/arguments.h"
#include "policy/policy.h"

namespace mikv {

// Fills fold, rank and by_value; false: the policy runs on the CPU only (it is a function from outside, or reads queries or keys).
bool gpu_policy(const PolicyChoice & choice, CommitArgs * args);

} // namespace mikv
