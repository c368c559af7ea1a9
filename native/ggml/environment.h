// MIKV_* variables: the configuration of hosts that know nothing of this plug-in.
#pragma once

#include "include/mikv.h"

namespace mikv {

// Starts from the default config. On MIKV_ERROR_* mikv_last_error() names the variable.
// MIKV_K_BITS, MIKV_V_BITS, MIKV_REFINED_BITS, MIKV_REFINED_SHARE, MIKV_BUDGET_BYTES, MIKV_POLICY, MIKV_SINKS, MIKV_WINDOW, MIKV_GROUP,
// MIKV_CENTER_KEYS, MIKV_COMPRESS_F16, MIKV_HEAD_DIM
mikv_status config_from_environment(mikv_config * config);

} // namespace mikv
