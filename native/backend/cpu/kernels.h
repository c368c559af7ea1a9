// The kernel sets of the CPU: one table per instruction set, chosen at run time. "plain" is the definition.
#pragma once

#include "dialect/dialect.h"
#include "kernel/batch.h"

namespace mikv {

// Working memory of one thread; grows, never shrinks while the thread lives.
float * thread_buffer(size_t n_floats);

struct Kernels {
    const char * name;
    bool (*runs_here)(); // does this machine have the instructions

    // store: one row. params of group g at params[g * params_stride]; refinement may be null.
    void (*encode_row)(const RowFormat & format, const float * row, uint16_t * params, int64_t params_stride, uint8_t * base,
                       uint8_t * refinement);
    // load: the inverse; refinement null: the base alone is read.
    void (*decode_row)(const RowFormat & format, const uint16_t * params, int64_t params_stride, const uint8_t * base,
                       const uint8_t * refinement, float * row);
    // score: logits[row * logit_stride + cell] for the cells [first, last).
    void (*score)(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows, int first,
                  int last, float * logits, int64_t logit_stride);
    // attend for few rows (decode): the partial sums, and weights[row * weight_stride + cell] = exp(logit - m), 0 where masked.
    void (*attend_few)(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows,
                       int first, int last, float * weights, int64_t weight_stride, const Partial & out);
    // attend for many rows (prefill): partial sums only.
    void (*attend_many)(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows,
                        int first, int last, const Partial & out);
    // Logits to weights in place: x = exp(x - m), 0 where masked; n values.
    void (*weigh)(float * x, float m, int n);
    // sums[i] += factor * weights[i]
    void (*add_scaled)(const float * weights, float factor, int n, float * sums);
};

extern const Kernels plain_kernels;
#if defined(MIKV_CPU_X86)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif
#if defined(MIKV_CPU_NEON)
extern const Kernels neon_kernels;
#endif

// Sets that this machine can run, slowest first; the last is the default.
int             kernels_count();
const Kernels * kernels_at(int index);             // null past the end
const Kernels & kernels();                         // the selected set
bool            kernels_select(const char * name); // null or "auto": the default; false: no such set here

} // namespace mikv
