// A graph with the KV operations taken out: llama.cpp's SET_ROWS, FLASH_ATTN_EXT and CPY on KV tensors become work of ours, all else is the
// inner device's. On a host device our work runs as GGML_OP_CUSTOM nodes inside the inner backend's own graph, on its own threads; on a
// foreign one the graph is cut, and the rows travel through the host.
#pragma once

#include "ggml/device.h"

namespace mikv {

ggml_status compute_graph(Device & device, ggml_backend_t inner, ggml_cgraph * graph, int n_threads);

} // namespace mikv
