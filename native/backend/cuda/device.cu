#include "backend/cuda/device.h"

#include <cuda_runtime.h>

#define MIKV_DECLARE(name, Arguments, Shared, n_threads) extern "C" __global__ void mikv_##name(const mikv::Arguments arguments);
MIKV_GPU_KERNELS(MIKV_DECLARE)

namespace mikv {

namespace {

const void * const entries[] = {
#define MIKV_ENTRY(name, Arguments, Shared, n_threads) reinterpret_cast<const void *>(mikv_##name),
    MIKV_GPU_KERNELS(MIKV_ENTRY)
};

int launch(void * queue, const GpuLaunch & l) {
    void *     arguments[] = {const_cast<void *>(l.arguments)};
    const dim3 blocks(l.blocks[0], l.blocks[1], l.blocks[2]), threads(gpu_kernel(l.kernel).n_threads);
    return cudaLaunchKernel(entries[int(l.kernel)], blocks, threads, arguments, 0, static_cast<cudaStream_t>(queue));
}

const char * explain(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

void * allocate(size_t size_bytes) {
    void * memory = nullptr;
    if (cudaMalloc(&memory, size_bytes) != cudaSuccess) {
        cudaGetLastError(); // or the next call would report it again
        return nullptr;
    }
    cudaMemset(memory, 0, size_bytes);
    return memory;
}

void release(void * memory) { cudaFree(memory); }

int copy(void * queue, void * to, const void * from, size_t size_bytes, cudaMemcpyKind kind) {
    const cudaStream_t stream = static_cast<cudaStream_t>(queue);
    const cudaError_t  error  = cudaMemcpyAsync(to, from, size_bytes, kind, stream);
    return error ? error : cudaStreamSynchronize(stream);
}

int write(void * queue, void * device, const void * host, size_t n) { return copy(queue, device, host, n, cudaMemcpyHostToDevice); }
int read(void * queue, void * host, const void * device, size_t n) { return copy(queue, host, device, n, cudaMemcpyDeviceToHost); }

} // namespace

const GpuDevice cuda_device = {"cuda", launch, explain, allocate, release, write, read};

} // namespace mikv
