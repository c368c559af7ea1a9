// The backend (stream) of a MIKV device: the inner device's, with the KV operations taken out of its graphs.
#pragma once

#include "ggml/device.h"

namespace mikv {

ggml_backend_t make_backend(Device & device, const char * params); // null: the inner device has none
bool           is_backend(ggml_backend_t backend);
ggml_backend_t inner_backend(ggml_backend_t backend);
void           set_threads(ggml_backend_t backend, int n_threads);

} // namespace mikv
