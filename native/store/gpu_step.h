// One layer's part of a micro-batch on a GPU: what Step is on the CPU. Everything is queued; nothing waits for it here.
#pragma once

#include "store/gpu_cache.h"
#include "store/step.h"

namespace mikv {

// Rows as the model computes them, f32 or f16, on the device; strides in bytes.
struct GpuRows {
    const uint8_t * rows        = nullptr;
    int64_t         token_bytes = 0, head_bytes = 0, stream_bytes = 0;
    bool            half = false;
};

// f16 [n_stream][n_head_kv][n_kv][head_dim] on the device: what another attention reads. Null: ours answers itself.
struct GpuLoaded {
    uint16_t * k = nullptr;
    uint16_t * v = nullptr;
};

struct GpuStepData {
    const int64_t *  cells = nullptr; // [n_stream][n_tokens]; null: the layer stores nothing
    GpuRows          q;
    const uint16_t * mask       = nullptr; // f16, or null; strides in values
    int64_t          mask_token = 0, mask_stream = 0;
    const float *    sinks = nullptr; // [n_head] or null
    float *          out   = nullptr; // [n_stream][n_tokens][n_head][head_dim_v]; not used where loaded is asked for
    GpuLoaded        loaded;
    float            scale = 1, max_bias = 0, softcap = 0;
    bool             cells_last = true; // false: out lies where the cells are, so that they are read before it is written
};

class GpuStep {
public:
    GpuStep(GpuCache & cache, const StepShape & shape);

    // Few queries are attended here; many by the inner device, from what is loaded for it.
    bool           few() const;
    bool           reserve(); // scratch in the cache; false: there is not so much memory
    size_t         scratch_bytes() const;
    static int64_t loaded_values(const Cache & cache, const StepShape & shape, bool value); // of GpuLoaded's arrays

    // Each returns gpu_ok or the device's error.
    int enter(bool value, const GpuRows & rows); // keys or values of the micro-batch
    // Once per micro-batch and cache, in the first layer that attends.
    int begin(const GpuStepData & data);
    int attend(const GpuStepData & data); // and what follows: scores, places, storing

private:
    int                n_queries() const;
    ScratchShape       scratch_shape() const;
    EnterArgs          enter_args(const GpuRows & rows, float * out, bool value) const;
    LayerArgs          layer_args() const;
    AttendArgs         attend_args(const GpuStepData & data) const;
    MergeArgs          merge_args(const GpuStepData & data, bool output) const;
    CommitArgs         commit_args(const GpuStepData & data) const;
    int                load(const GpuStepData & data) const;
    const GpuQueue &   queue() const { return gpu_.queue(); }
    const mikv_shape & cache_shape() const { return gpu_.cache().shape(); }
    int                group() const { return shape_.n_head / cache_shape().n_head_kv; }

    GpuCache & gpu_;
    StepShape  shape_;
    Scratch    at_{};
};

} // namespace mikv
