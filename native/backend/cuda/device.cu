#include "backend/cuda/device.h"

#include <cuda_runtime.h>

#include <cstdio>

#define MIKV_DECLARE(name, Arguments, Shared, n_threads)                                                                       \
    extern "C" __global__ void mikv_##name(const mikv::Arguments arguments);
MIKV_GPU_KERNELS(MIKV_DECLARE)

namespace mikv {

namespace {

const void * const entries[] = {
#define MIKV_ENTRY(name, Arguments, Shared, n_threads) reinterpret_cast<const void *>(mikv_##name),
    MIKV_GPU_KERNELS(MIKV_ENTRY)};

struct Queue {
    int          device;
    cudaStream_t stream;
};

// The calling thread may work for another device: cudaSetDevice costs next to nothing when nothing changes.
cudaStream_t enter(void * queue) {
    const Queue * q = static_cast<Queue *>(queue);
    cudaSetDevice(q->device);
    return q->stream;
}

int find_device(const char * id) {
    int n = 0, number = -1;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        return -1;
    }
    if (!id) {
        return 0;
    }
    return cudaDeviceGetByPCIBusId(&number, id) == cudaSuccess ? number : -1;
}

// Was this library compiled for the device? An unknown kernel is what tells.
bool runs_kernels() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, entries[0]) == cudaSuccess;
}

void * open(const char * id) {
    const int    number = find_device(id);
    cudaStream_t stream = nullptr;
    if (number < 0 || cudaSetDevice(number) != cudaSuccess || !runs_kernels() ||
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) {
        cudaGetLastError(); // or the next call would report it again
        return nullptr;
    }
    return new Queue{number, stream};
}

void close(void * queue) {
    cudaStreamDestroy(enter(queue));
    delete static_cast<Queue *>(queue);
}

int n_processors(void * queue) {
    int n = 0;
    cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, static_cast<Queue *>(queue)->device);
    return n > 0 ? n : 1;
}

void describe(void * queue, char * text, size_t size_bytes) {
    cudaDeviceProp properties{};
    int            driver = 0, runtime = 0;
    cudaGetDeviceProperties(&properties, static_cast<Queue *>(queue)->device);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    std::snprintf(text, size_bytes, "%s, sm_%d%d, driver %d, runtime %d", properties.name, properties.major, properties.minor,
                  driver, runtime);
}

int launch(void * queue, const GpuLaunch & l) {
    void *     arguments[] = {const_cast<void *>(l.arguments)};
    const dim3 blocks(l.blocks[0], l.blocks[1], l.blocks[2]), threads(gpu_kernel(l.kernel).n_threads);
    return cudaLaunchKernel(entries[int(l.kernel)], blocks, threads, arguments, 0, enter(queue));
}

const char * explain(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int finish(void * queue) { return cudaStreamSynchronize(enter(queue)); }

void * allocate(void * queue, size_t size_bytes) {
    const cudaStream_t stream = enter(queue);
    void *             memory = nullptr;
    if (cudaMalloc(&memory, size_bytes) != cudaSuccess) {
        cudaGetLastError(); // or the next call would report it again
        return nullptr;
    }
    cudaMemsetAsync(memory, 0, size_bytes, stream);
    return memory;
}

void release(void * queue, void * memory) {
    cudaStreamSynchronize(enter(queue));
    cudaFree(memory);
}

int copy(void * queue, void * to, const void * from, size_t size_bytes, cudaMemcpyKind kind) {
    const cudaStream_t stream = enter(queue);
    const cudaError_t  error  = cudaMemcpyAsync(to, from, size_bytes, kind, stream);
    return error ? error : cudaStreamSynchronize(stream);
}

int write(void * queue, void * device, const void * host, size_t n) {
    return copy(queue, device, host, n, cudaMemcpyHostToDevice);
}
int read(void * queue, void * host, const void * device, size_t n) {
    return copy(queue, host, device, n, cudaMemcpyDeviceToHost);
}

int wait(void * queue, void * event) { return cudaStreamWaitEvent(enter(queue), static_cast<cudaEvent_t>(event), 0); }
int record(void * queue, void * event) { return cudaEventRecord(static_cast<cudaEvent_t>(event), enter(queue)); }

} // namespace

const GpuDevice cuda_device = {"CUDA",   open,    close, n_processors, describe, launch, explain, finish,
                               allocate, release, write, read,         wait,     record, nullptr, nullptr};

} // namespace mikv
