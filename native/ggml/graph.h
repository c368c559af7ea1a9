// A graph with the KV operations taken out: llama.cpp's SET_ROWS, FLASH_ATTN_EXT and CPY on KV tensors become work of ours, all else is the
// inner device's. Where the inner device has kernels of ours, gpu_plan.h is what happens. Else, on a host device our work runs as GGML_OP_CUSTOM nodes inside the inner backend's own graph, on its own threads; on a
// foreign one the graph is cut, and the rows travel through the host.
#pragma once

#include <memory>
#include <vector>

#include "ggml/device.h"
#include "ggml/gpu_plan.h"
#include "ggml/plan.h"

namespace mikv {

// One backend's graphs. llama.cpp computes the same one for many tokens, so what was derived from it is kept.
class GraphRunner {
public:
    GraphRunner(Device & device, ggml_backend_t inner) : device_(device), inner_(inner) {}

    ggml_status compute(ggml_cgraph * graph, int n_threads);

private:
    bool        runs_on_gpu(ggml_cgraph * graph);
    void        stay_home(const ggml_cgraph & graph, const std::string & why);
    void        make_nodes();
    ggml_status compute_inside(const ggml_cgraph & graph);
    ggml_status compute_in_pieces(const ggml_cgraph & graph);

    Device &                   device_;
    ggml_backend_t             inner_;
    std::unique_ptr<Plan>      plan_;   // of the last graph
    std::vector<ggml_tensor>   custom_; // nodes that make the inner backend run our work
    std::vector<ggml_tensor *> nodes_;  // of the graph for the inner backend

    std::unique_ptr<LoadedRows> loaded_; // where the inner device has kernels of ours, as the next two
    std::unique_ptr<Handover>   handover_;
    std::unique_ptr<GpuPlan>    gpu_plan_; // of the last graph; null: it was not one for them
};

} // namespace mikv
