// Emulates how a GPU executes a kernel: blocks of threads in warps of 32, shared memory, barriers and exchanges within a warp.
//
// What it reports, with file and line: accesses outside of the memory that it was told of, races, barriers and exchanges that not all threads
// reach. Shared memory is full of NaN at the start of each block. Threads of a block, warps and blocks run in an order that can be chosen: a kernel
// that depends on it has a race that the watch did not see, so tests run every order and want the same bits.
// What it cannot show: weak ordering of memory, fast-math instructions, timing.
#pragma once

#include <string>
#include <vector>

#include "backend/emulated/watch.h"
#include "dialect/dialect.h"

namespace mikv {

struct EmulatedKernel {
    const char * name;
    void (*run)(const void * arguments, const WorkPlace & place, void * shared);
    uint32_t n_threads; // a multiple of 32
    uint32_t argument_bytes;
    uint32_t shared_bytes;
};

// In which order the threads of a block, its warps and the blocks take their turns.
enum class TurnOrder { forward, reversed, odd_first, shuffled };
constexpr TurnOrder turn_orders[] = {TurnOrder::forward, TurnOrder::reversed, TurnOrder::odd_first, TurnOrder::shuffled};

struct EmulatorReport {
    TurnOrder                order = TurnOrder::forward;
    bool                     watch = true; // false: memory is not watched: faster, and finds divergence only
    std::vector<std::string> faults;       // a kernel ends at its first
};

// The memory that kernels may touch; one for all, since kernels run one at a time.
Watch & emulator_watch();

// Runs all blocks. Returns false, and adds to the report, if there was a fault; the kernel is then abandoned. One at a time: callers wait.
bool emulate(const EmulatedKernel & kernel, const uint32_t blocks[3], const void * arguments, EmulatorReport & report);

} // namespace mikv
