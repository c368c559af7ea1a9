// llama.cpp's graph cut in pieces: the inner device computes one, our kernels work on its results, and so on, each in its own queue on the device.
#pragma once

#include <functional>
#include <set>

#include "ggml/graph_identity.h"
#include "ggml/node.h"
#include "store/gpu_step.h"

namespace mikv {

// Puts the inner backend's queue and ours in one order: by the inner device's events where it has any, else the host waits.
class Handover {
public:
    Handover(const Device & device, ggml_backend_t inner);
    ~Handover();
    Handover(const Handover &)             = delete;
    Handover & operator=(const Handover &) = delete;

    // What is queued from now on waits for what the other has queued so far. gpu_ok or an error.
    int to_ours();
    int to_inner();

private:
    const GpuQueue       queue_;
    ggml_backend_dev_t   device_;
    ggml_backend_t       inner_;
    ggml_backend_event_t theirs_ = nullptr, ours_ = nullptr; // null: no events
};

// One layer's keys and values in f16 for the inner device's attention; all layers and graphs share it.
class LoadedRows {
public:
    ~LoadedRows() { release(); }
    bool                  grow(ggml_backend_dev_t inner, size_t size_bytes); // nobody uses it any more
    ggml_backend_buffer_t buffer() const { return buffer_; }
    size_t                size_bytes() const { return size_bytes_; }

private:
    void                  release();
    ggml_backend_buffer_t buffer_     = nullptr;
    size_t                size_bytes_ = 0;
};

class GpuPlan {
public:
    // Null: this graph has something that kernels do not serve, and *why says what.
    static std::unique_ptr<GpuPlan> make(Device & device, ggml_cgraph * graph, LoadedRows & loaded, std::string * why);
    ~GpuPlan();

    const GraphIdentity & identity() const { return identity_; }
    ggml_status           compute(const ggml_cgraph & graph, ggml_backend_t inner, Handover & handover);

private:
    struct Layer { // from the first SET_ROWS to the attention
        std::unique_ptr<GpuStep> step;
        StepShape                shape{};
        GpuStepData              data;
        const ggml_tensor *      cells     = nullptr;
        const ggml_tensor *      rows[2]   = {nullptr, nullptr}; // keys, values
        int                      index     = 0;
        bool                     begins    = false;
        ggml_tensor *            keys      = nullptr; // loaded, for the inner device; null: ours answers
        ggml_tensor *            values    = nullptr;
        ggml_tensor *            attention = nullptr; // the inner device's, over them
    };
    struct Mapping {
        char * base  = nullptr; // as kernels know it
        void * token = nullptr;
    };
    struct Piece {
        std::vector<ggml_tensor *>        nodes;        // of the inner device, first
        bool                              empty = true; // they all move nothing
        std::vector<std::function<int()>> work;         // ours, then
    };

    explicit GpuPlan(Device & device) : device_(device) {}
    bool          add(ggml_tensor * node);
    bool          add_rows(ggml_tensor * node);
    bool          add_attention(ggml_tensor * node);
    bool          bind(Layer & layer, ggml_tensor * node);
    bool          add_inner_attention(Layer & layer, const ggml_tensor * node);
    bool          finish(LoadedRows & loaded);
    ggml_tensor * loaded_tensor(const ggml_tensor * like);
    void          add_node(ggml_tensor * node);
    void          add_work(std::function<int()> work);
    const void *  address(const ggml_tensor * t);
    GpuRows       rows_of(const ggml_tensor * t, int64_t token, int64_t head, int64_t stream);
    bool          refuse(const std::string & why) {
        why_ = why;
        return false;
    }

    Device &                                     device_;
    GraphIdentity                                identity_;
    std::vector<Piece>                           pieces_;
    std::vector<std::shared_ptr<Layer>>          layers_;
    std::map<GpuCache *, std::shared_ptr<Layer>> waiting_;
    std::vector<GpuCache *>                      caches_;
    std::set<GpuCache *>                         begun_;
    std::map<ggml_backend_buffer_t, Mapping>     mappings_; // of the inner device\'s memory
    std::vector<std::unique_ptr<ggml_tensor>>    tensors_;
    std::string                                  why_;
};

} // namespace mikv
