// The one waist between what a GPU is to do and who makes it do it: CUDA, Metal and the emulator each fill one GpuDevice.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel/gpu/arguments.h"
#include "kernel/gpu/list.h"

namespace mikv {

enum class GpuKernel : int {
#define MIKV_NAME(name, Arguments, Shared, n_threads) name,
    MIKV_GPU_KERNELS(MIKV_NAME)
#undef MIKV_NAME
};

#define MIKV_COUNT(name, Arguments, Shared, n_threads) +1
constexpr int n_gpu_kernels = 0 MIKV_GPU_KERNELS(MIKV_COUNT);
#undef MIKV_COUNT

struct GpuKernelRow {
    const char * name; // of the entry point
    uint32_t     n_threads;
    uint32_t     argument_bytes;
};
const GpuKernelRow & gpu_kernel(GpuKernel kernel);

struct GpuLaunch {
    GpuKernel    kernel;
    uint32_t     blocks[3]; // none of them 0
    const void * arguments; // gpu_kernel(kernel).argument_bytes of them, read before launch() returns
};

constexpr int gpu_ok = 0;

struct GpuDevice {
    const char * name;
    // Queues a launch behind those before it in the same queue (CUDA: cudaStream_t; Metal: id<MTLComputeCommandEncoder>, serial; emulator: its
    // EmulatorReport *, and the work is done on return). gpu_ok, or an error of the device's own.
    int (*launch)(void * queue, const GpuLaunch & launch);
    const char * (*explain)(int error); // static text

    // Memory of the device, for self-tests, tests and hosts that have none of their own: at a multiple of 256, zeroed; null: there is not so much.
    void * (*allocate)(size_t size_bytes);
    void (*release)(void * memory);
    // Copies that wait for what was queued before, and are done on return.
    int (*write)(void * queue, void * device, const void * host, size_t size_bytes);
    int (*read)(void * queue, void * host, const void * device, size_t size_bytes);
};

struct GpuQueue {
    const GpuDevice * device;
    void *            queue;
};

} // namespace mikv
