// One node's worth of our work, and the tensors that it reads and writes.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "ggml/buffer.h"
#include "store/step.h"

namespace mikv {

// Where the host finds a tensor's bytes: in place, or in a copy fetched from the inner device. Strides are the tensor's own either way.
class HostData {
public:
    explicit HostData(bool foreign) : foreign_(foreign) {}
    bool   foreign() const { return foreign_; }
    char * at(const ggml_tensor * t) { return foreign_ ? copies_.at(t).data() : static_cast<char *>(t->data); }
    void   fetch(const ggml_tensor * t); // foreign: the tensor's bytes now
    void   room_for(const ggml_tensor * t) { copies_[t].resize(ggml_nbytes(t)); }
    void   deliver(ggml_tensor * t) { ggml_backend_tensor_set(t, copies_.at(t).data(), 0, ggml_nbytes(t)); }

private:
    bool                                                       foreign_;
    std::unordered_map<const ggml_tensor *, std::vector<char>> copies_;
};

struct Work {
    std::function<void()>            prepare; // by one thread, when the inputs' bytes are at hand; may be empty
    std::function<void(int, int)>    run;     // (thread, threads)
    std::vector<const ggml_tensor *> inputs;
    ggml_tensor *                    output = nullptr; // delivered to a foreign device afterwards

    std::atomic<int> next{0};
    // Items of this work, whichever thread is free.
    void share(int n_items, const std::function<void(int)> & item) {
        for (int i = next++; i < n_items; i = next++) {
            item(i);
        }
    }
};

// Values that llama.cpp would have rotated, in blocks of so many; block 0: it does, and these are not used.
struct Unrotated {
    std::vector<float> values;
    int                block = 0;
};

// One layer's rows in a micro-batch: from the first SET_ROWS to its attention, or to the end of the graph.
struct LayerWork {
    KvTensor              tensor;            // key or value: layer and cache
    const ggml_tensor *   cells   = nullptr; // I64 or I32: where the rows go
    bool                  has_key = false, has_value = false;
    bool                  begins = false; // the first of its cache in this graph: registers the micro-batch
    StepShape             shape{};
    StepData              data;
    std::unique_ptr<Step> step;
    std::vector<int64_t>  cell_ids;
    std::vector<uint16_t> open_mask;             // when the attention has none
    std::vector<float>    own_out;               // what attention writes, where the rows lie in its output's memory
    Work *                stage_key   = nullptr; // the works that bring the rows to the staging
    Work *                stage_value = nullptr;
    const ggml_tensor *   key_rows    = nullptr; // [n_embd, n_tokens], f32 or f16
    const ggml_tensor *   value_rows  = nullptr;
    Unrotated             query, keys, values;

    Cache & cache() const { return tensor.buffer->cache(tensor); }
    // Once the rows' cells are read: registers the micro-batch, unless its mask is still to come.
    void open(bool mask_to_come);
    // Where the rows lie on the host before they are staged. The bytes: of key_rows and value_rows.
    RowSource source(const char * key_bytes, const char * value_bytes) const;
};

// --- what the kinds of work do ---------------------------------------------------------------------------------------------------

void read_cells(LayerWork & layer, const char * bytes); // the index tensor's bytes
// Rows of a SET_ROWS into the staging: this thread's share.
void stage_rows(const LayerWork & layer, bool value, const ggml_tensor * rows, const char * bytes, int thread, int n_threads);
// Rows that no attention of this graph waits for.
void commit_unattended(LayerWork & layer);
// A view of a KV tensor into dst (f32), and src (f32) into a view of a KV tensor.
void load_view(const ggml_tensor * view, const ggml_tensor * dst, char * bytes);
void store_view(const ggml_tensor * src, const char * bytes, const ggml_tensor * view);
// A KV tensor into its shadow, of the same logical type on the inner device; and the rows in which the shadow differs from it back.
void fill_shadow(const ggml_tensor * root, ggml_tensor * shadow);
void take_back_shadow(const ggml_tensor * root, const ggml_tensor * shadow);

} // namespace mikv
