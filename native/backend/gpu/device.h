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

constexpr int gpu_ok = 0, gpu_failed = -1; // other numbers are the device's own

// What the functions below call a queue is what open() returns. Errors are gpu_ok or the device's own.
struct GpuDevice {
    const char * name;
    // A queue on the device that has this id: a PCI bus id, or what the backend knows its devices by; null: the first. Null: no such device. The
    // owner closes it.
    void * (*open)(const char * id);
    void (*close)(void * queue);
    int (*n_processors)(void * queue); // streaming multiprocessors, cores
    // What a self-test that was passed is true of: device and driver, in one line of at most size_bytes with its end.
    void (*describe)(void * queue, char * text, size_t size_bytes);

    // Queues a launch behind those before it in the same queue. The emulator does the work at once.
    int (*launch)(void * queue, const GpuLaunch & launch);
    const char * (*explain)(int error); // static text
    int (*finish)(void * queue);        // waits until everything queued is done

    // Memory of the device, by its addresses: at a multiple of 256, zeroed; null: there is not so much. What was queued before may still use what
    // is released.
    void * (*allocate)(void * queue, size_t size_bytes);
    void (*release)(void * queue, void * memory);
    // Copies that wait for what was queued before, and are done on return.
    int (*write)(void * queue, void * device, const void * host, size_t size_bytes);
    int (*read)(void * queue, void * host, const void * device, size_t size_bytes);

    // The same order for this queue and another one of the device: what comes later waits for the event, and the event for what came before (CUDA:
    // cudaEvent_t). Null: there are no events, and the host waits for both.
    int (*wait)(void * queue, void * event);
    int (*record)(void * queue, void * event);
    // The device's address of memory [base, base + size_bytes) that somebody else allocated on it and names by these addresses; null: kernels cannot
    // reach it. Until unmap(*token). A null function: these addresses are the device's own.
    void * (*map)(void * queue, void * base, size_t size_bytes, void ** token);
    void (*unmap)(void * queue, void * token);
};

struct GpuQueue {
    const GpuDevice * device;
    void *            queue;
};

} // namespace mikv
