#include "backend/metal/device.h"

#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

namespace mikv {

namespace {

// The texts, by scripts/metal_text.py.
const char exact_text[] =
#include "mikv_metal_exact.inc"
    ;
const char loose_text[] =
#include "mikv_metal_loose.inc"
    ;

constexpr int not_run = 1, no_memory = 2; // errors

struct Queue {
    id<MTLDevice>                     device;
    id<MTLCommandQueue>               commands;
    id<MTLComputePipelineState>       pipelines[n_gpu_kernels];
    id<MTLCommandBuffer>              buffer;  // at work; nil: nothing is queued
    id<MTLComputeCommandEncoder>      encoder; // of it
    std::map<uint64_t, id<MTLBuffer>> memory;  // by the device's address: ours and what is mapped
    std::recursive_mutex              guard;
};

Queue * of(void * queue) { return static_cast<Queue *>(queue); }

id<MTLLibrary> compile(id<MTLDevice> device, const char * text) {
    MTLCompileOptions * options = [[MTLCompileOptions alloc] init];
    options.fastMathEnabled     = NO;
    NSError *      error        = nil;
    id<MTLLibrary> library = [device newLibraryWithSource:[NSString stringWithUTF8String:text] options:options error:&error];
    if (!library) {
        std::fprintf(stderr, "mikv: Metal's compiler refuses the kernels: %s\n", error.localizedDescription.UTF8String);
    }
    return library;
}

// False: a kernel is missing, or needs more threads than this GPU gives a block, or warps of another size.
bool make_pipelines(Queue & q, id<MTLLibrary> exact, id<MTLLibrary> loose) {
    for (int i = 0; i < n_gpu_kernels; i++) {
        const GpuKernelRow & row      = gpu_kernel(GpuKernel(i));
        NSString *           name     = [NSString stringWithUTF8String:row.name];
        id<MTLFunction>      function = [exact newFunctionWithName:name];
        function                      = function ? function : [loose newFunctionWithName:name];
        NSError * error               = nil;
        q.pipelines[i]                = function ? [q.device newComputePipelineStateWithFunction:function error:&error] : nil;
        if (!q.pipelines[i] || q.pipelines[i].maxTotalThreadsPerThreadgroup < row.n_threads ||
            q.pipelines[i].threadExecutionWidth != 32) {
            return false;
        }
    }
    return true;
}

void * open(const char *) {
    @autoreleasepool {
        std::unique_ptr<Queue> q(new Queue);
        q->device = MTLCreateSystemDefaultDevice();
        if (!q->device || ![q->device supportsFamily:MTLGPUFamilyMetal3]) { // addresses in arguments came with Metal 3
            return nullptr;
        }
        q->commands          = [q->device newCommandQueue];
        id<MTLLibrary> exact = compile(q->device, exact_text), loose = compile(q->device, loose_text);
        return exact && loose && make_pipelines(*q, exact, loose) ? q.release() : nullptr;
    }
}

int finish(void * queue) {
    Queue *                               q = of(queue);
    std::lock_guard<std::recursive_mutex> lock(q->guard);
    if (!q->buffer) {
        return gpu_ok;
    }
    [q->encoder endEncoding];
    [q->buffer commit];
    [q->buffer waitUntilCompleted];
    const bool good = q->buffer.status == MTLCommandBufferStatusCompleted;
    q->encoder      = nil;
    q->buffer       = nil;
    return good ? gpu_ok : not_run;
}

void close(void * queue) {
    finish(queue);
    delete of(queue);
}

int n_processors(void *) { return 32; } // Metal does not say; the largest have 40 to 80 cores, most 8 to 20

void describe(void * queue, char * text, size_t size_bytes) {
    @autoreleasepool {
        std::snprintf(text, size_bytes, "%s, macOS %s", of(queue)->device.name.UTF8String,
                      [NSProcessInfo processInfo].operatingSystemVersionString.UTF8String);
    }
}

bool begin(Queue & q) {
    if (!q.buffer) {
        q.buffer  = [q.commands commandBuffer];
        q.encoder = [q.buffer computeCommandEncoder];
    }
    return q.encoder != nil;
}

int launch(void * queue, const GpuLaunch & l) {
    @autoreleasepool {
        Queue &                               q = *of(queue);
        std::lock_guard<std::recursive_mutex> lock(q.guard);
        if (!begin(q)) {
            return not_run;
        }
        const GpuKernelRow & row = gpu_kernel(l.kernel);
        [q.encoder setComputePipelineState:q.pipelines[int(l.kernel)]];
        [q.encoder setBytes:l.arguments length:row.argument_bytes atIndex:0];
        for (const auto & memory : q.memory) { // the arguments have addresses of any of it
            [q.encoder useResource:memory.second usage:MTLResourceUsageRead | MTLResourceUsageWrite];
        }
        [q.encoder dispatchThreadgroups:MTLSizeMake(l.blocks[0], l.blocks[1], l.blocks[2])
                  threadsPerThreadgroup:MTLSizeMake(row.n_threads, 1, 1)];
        [q.encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
        return gpu_ok;
    }
}

const char * explain(int error) {
    return error == gpu_ok ? "no error" : error == not_run ? "Metal did not run a kernel" : "memory that is not the device's";
}

// What keeps `address`, and where in it; nil: nobody's.
id<MTLBuffer> find(Queue & q, uint64_t address, size_t size_bytes, size_t * offset) {
    auto at = q.memory.upper_bound(address);
    if (at == q.memory.begin()) {
        return nil;
    }
    --at;
    *offset = size_t(address - at->first);
    return *offset + size_bytes <= at->second.length ? at->second : nil;
}

// Where the host finds device memory, with all work on it done; null, and why in *error: it is nobody's, or a kernel failed.
char * host_side(void * queue, const void * device, size_t size_bytes, int * error) {
    size_t offset        = 0;
    *error               = finish(queue);
    id<MTLBuffer> buffer = find(*of(queue), reinterpret_cast<uint64_t>(device), size_bytes, &offset);
    if (*error == gpu_ok && !buffer) {
        *error = no_memory;
    }
    return *error == gpu_ok ? static_cast<char *>(buffer.contents) + offset : nullptr;
}

void * allocate(void * queue, size_t size_bytes) {
    Queue &                               q = *of(queue);
    std::lock_guard<std::recursive_mutex> lock(q.guard);
    id<MTLBuffer> buffer = [q.device newBufferWithLength:size_bytes options:MTLResourceStorageModeShared];
    if (!buffer) {
        return nullptr;
    }
    std::memset(buffer.contents, 0, size_bytes);
    q.memory[buffer.gpuAddress] = buffer;
    return reinterpret_cast<void *>(buffer.gpuAddress);
}

void release(void * queue, void * memory) {
    Queue &                               q = *of(queue);
    std::lock_guard<std::recursive_mutex> lock(q.guard);
    finish(queue);
    q.memory.erase(reinterpret_cast<uint64_t>(memory));
}

int write(void * queue, void * device, const void * host, size_t size_bytes) {
    std::lock_guard<std::recursive_mutex> lock(of(queue)->guard);
    int                                   error = gpu_ok;
    if (char * to = host_side(queue, device, size_bytes, &error)) {
        std::memcpy(to, host, size_bytes);
    }
    return error;
}

int read(void * queue, void * host, const void * device, size_t size_bytes) {
    std::lock_guard<std::recursive_mutex> lock(of(queue)->guard);
    int                                   error = gpu_ok;
    if (const char * from = host_side(queue, device, size_bytes, &error)) {
        std::memcpy(host, from, size_bytes);
    }
    return error;
}

// A buffer of ours over the pages of the host program's.
void * map(void * queue, void * base, size_t size_bytes, void ** token) {
    Queue &                               q = *of(queue);
    std::lock_guard<std::recursive_mutex> lock(q.guard);
    const uintptr_t page = uintptr_t(getpagesize()), first = reinterpret_cast<uintptr_t>(base) / page * page;
    const uintptr_t end    = (reinterpret_cast<uintptr_t>(base) + size_bytes + page - 1) / page * page;
    id<MTLBuffer>   buffer = [q.device newBufferWithBytesNoCopy:reinterpret_cast<void *>(first)
                                                       length:end - first
                                                      options:MTLResourceStorageModeShared
                                                  deallocator:nil];
    if (!buffer) {
        return nullptr;
    }
    q.memory[buffer.gpuAddress] = buffer;
    *token                      = reinterpret_cast<void *>(buffer.gpuAddress);
    return reinterpret_cast<void *>(buffer.gpuAddress + (reinterpret_cast<uintptr_t>(base) - first));
}

} // namespace

const GpuDevice metal_device = {"Metal",  open,    close, n_processors, describe, launch,  explain, finish,
                                allocate, release, write, read,         nullptr,  nullptr, map,     release};

} // namespace mikv
