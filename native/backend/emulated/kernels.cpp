// The kernels for the emulator. Compiled with -fsanitize=thread, which announces each access to memory (watch.h).
#include "kernel/gpu/kernels.h"

#include <cstdlib>
#include <cstring>
#include <map>

#include "backend/emulated/device.h"
#include "backend/emulated/emulator.h"

namespace mikv {

namespace {

#define MIKV_ENTRY(name, Arguments, Shared, n_threads) MIKV_KERNEL(name, Arguments, Shared, n_threads)
MIKV_GPU_KERNELS(MIKV_ENTRY)

const EmulatedKernel kernels[] = {
#define MIKV_ROW(name, Arguments, Shared, n_threads) {"mikv_" #name, mikv_##name, n_threads, sizeof(Arguments), sizeof(Shared)},
    MIKV_GPU_KERNELS(MIKV_ROW)};

constexpr int fault = 1;

int launch(void * queue, const GpuLaunch & launch) {
    EmulatorReport   unread;
    EmulatorReport & report = queue ? *static_cast<EmulatorReport *>(queue) : unread;
    report.watch            = report.watch && queue;
    return emulate(kernels[int(launch.kernel)], launch.blocks, launch.arguments, report) ? gpu_ok : fault;
}

const char * explain(int error) {
    return error == gpu_ok ? "no error" : "a kernel did what it may not: the emulator's report says what";
}

std::map<void *, size_t> allocated;

void * allocate(size_t size_bytes) {
    void * memory = std::aligned_alloc(256, (size_bytes + 511) / 256 * 256);
    if (memory) {
        std::memset(memory, 0, size_bytes);
        allocated[memory] = size_bytes;
        emulator_watch().allow(memory, size_bytes, "device memory", true);
    }
    return memory;
}

void release(void * memory) {
    emulator_watch().forget(memory, allocated[memory] + 1);
    allocated.erase(memory);
    std::free(memory);
}

int copy(void *, void * to, const void * from, size_t size_bytes) {
    std::memcpy(to, from, size_bytes);
    return gpu_ok;
}

} // namespace

const GpuDevice emulated_device = {"emulated", launch, explain, allocate, release, copy, copy};

} // namespace mikv
