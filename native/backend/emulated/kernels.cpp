// The kernels for the emulator. Compiled with -fsanitize=thread, which announces each access to memory (watch.h).
#include "kernel/gpu/kernels.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

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

// Queues of open() do their work when somebody waits for it, not before: a host that forgets to wait finds nothing done.
struct Deferred {
    GpuLaunch            launch;
    std::vector<uint8_t> arguments;
};
std::map<void *, std::vector<Deferred>> opened;

void * open(const char *) {
    EmulatorReport * report = new EmulatorReport;
    report->watch           = false;
    opened[report];
    return report;
}

int n_processors(void *) { return 2; }

void describe(void *, char * text, size_t size_bytes) { std::snprintf(text, size_bytes, "emulator of GPU execution"); }

// MIKV_EMULATED_FAULT names a kernel that then does nothing: what a broken device is to its host.
bool left_out(GpuKernel kernel) {
    const char * name = std::getenv("MIKV_EMULATED_FAULT");
    return name && std::strcmp(name, gpu_kernel(kernel).name) == 0;
}

int run(void * queue, const GpuLaunch & launch) {
    EmulatorReport & report = *static_cast<EmulatorReport *>(queue);
    return emulate(kernels[int(launch.kernel)], launch.blocks, launch.arguments, report) ? gpu_ok : fault;
}

int launch(void * queue, const GpuLaunch & launch) {
    if (left_out(launch.kernel)) {
        return gpu_ok;
    }
    const auto later = opened.find(queue);
    if (later == opened.end()) {
        return run(queue, launch);
    }
    const uint8_t * arguments = static_cast<const uint8_t *>(launch.arguments);
    later->second.push_back({launch, {arguments, arguments + gpu_kernel(launch.kernel).argument_bytes}});
    return gpu_ok;
}

int finish(void * queue) {
    const auto later = opened.find(queue);
    int        error = gpu_ok;
    if (later != opened.end()) {
        for (Deferred & work : later->second) {
            work.launch.arguments = work.arguments.data();
            error                 = error ? error : run(queue, work.launch);
        }
        later->second.clear();
    }
    return error;
}

void close(void * queue) {
    opened.erase(queue);
    delete static_cast<EmulatorReport *>(queue);
}

const char * explain(int error) {
    return error == gpu_ok ? "no error" : "a kernel did what it may not: the emulator's report says what";
}

std::map<void *, size_t> allocated;

void * allocate(void *, size_t size_bytes) {
    void * memory = std::aligned_alloc(256, (size_bytes + 511) / 256 * 256);
    if (memory) {
        std::memset(memory, 0, size_bytes);
        allocated[memory] = size_bytes;
        emulator_watch().allow(memory, size_bytes, "device memory", true);
    }
    return memory;
}

void release(void * queue, void * memory) {
    finish(queue);
    emulator_watch().forget(memory, allocated[memory] + 1);
    allocated.erase(memory);
    std::free(memory);
}

int copy(void * queue, void * to, const void * from, size_t size_bytes) {
    const int error = finish(queue);
    std::memcpy(to, from, size_bytes);
    return error;
}

} // namespace

const GpuDevice emulated_device = {"emulated", open,    close, n_processors, describe, launch,  explain, finish,
                                   allocate,   release, copy,  copy,         nullptr,  nullptr, nullptr, nullptr};

} // namespace mikv
