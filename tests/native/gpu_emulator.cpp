// The emulator of GPU execution itself: small kernels that are right, and kernels with one fault each, which it must report where it is.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>

#include "backend/emulated/emulator.h"

namespace mikv {

namespace {

constexpr int n_threads = 64, n_blocks = 3;

struct Args {
    const float * in; // [n_blocks * n_threads]
    float *       out;
};

struct Shared {
    float x[n_threads];
};

const Args &   args_of(const void * arguments) { return *static_cast<const Args *>(arguments); }
const uint32_t last = n_threads - 1;

// --- right ones -----------------------------------------------------------------------------------------------------------------

void reverse(const void * arguments, const WorkPlace & at, void * memory) {
    const Args & a                           = args_of(arguments);
    static_cast<Shared *>(memory)->x[at.tid] = a.in[at.x * n_threads + at.tid];
    block_sync();
    a.out[at.x * n_threads + at.tid] = static_cast<Shared *>(memory)->x[last - at.tid];
}

void reverse_in_warp(const void * arguments, const WorkPlace & at, void * memory) {
    const Args & a                           = args_of(arguments);
    static_cast<Shared *>(memory)->x[at.tid] = a.in[at.x * n_threads + at.tid];
    warp_sync();
    a.out[at.x * n_threads + at.tid] = static_cast<Shared *>(memory)->x[at.tid ^ 31u];
}

// Values that are given and taken back at once: a fast thread must not give its second before its peers have taken its first.
void exchange_twice(const void * arguments, const WorkPlace & at, void *) {
    const Args & a     = args_of(arguments);
    const float  x     = a.in[at.x * n_threads + at.tid];
    const float  other = warp_xor(x, 5u), again = warp_xor(other, 5u);
    a.out[at.x * n_threads + at.tid] = again == x ? warp_xor(x, 31u) : NAN;
}

void loop_with_barriers(const void * arguments, const WorkPlace & at, void * memory) {
    const Args & a = args_of(arguments);
    Shared &     s = *static_cast<Shared *>(memory);
    float        x = a.in[at.x * n_threads + at.tid];
    for (int i = 0; i < 4; i++) {
        s.x[at.tid] = x;
        block_sync();
        x = s.x[last - at.tid];
        block_sync();
    }
    a.out[at.x * n_threads + last - at.tid] = x;
}

// One warp has nothing to do and ends at once, the other after an exchange.
void warps_apart(const void * arguments, const WorkPlace & at, void *) {
    const Args & a = args_of(arguments);
    const float  x = a.in[at.x * n_threads + at.tid];
    if (at.tid >= 32) {
        a.out[at.x * n_threads + (at.tid ^ 31u)] = x;
        return;
    }
    a.out[at.x * n_threads + at.tid] = warp_xor(x, 31u);
}

// --- wrong ones: the line of each fault stands before it ------------------------------------------------------------------------------

constexpr int missing_barrier_line = __LINE__ + 5;
void          missing_barrier(const void * arguments, const WorkPlace & at, void * memory) {
    const Args & a                   = args_of(arguments);
    Shared &     s                   = *static_cast<Shared *>(memory);
    s.x[at.tid]                      = a.in[at.x * n_threads + at.tid];
    a.out[at.x * n_threads + at.tid] = s.x[last - at.tid];
}

constexpr int barrier_too_late_line = __LINE__ + 8; // of a loop's next round
void          barrier_too_late(const void * arguments, const WorkPlace & at, void * memory) {
    const Args & a = args_of(arguments);
    Shared &     s = *static_cast<Shared *>(memory);
    float        x = a.in[at.x * n_threads + at.tid];
    for (int i = 0; i < 3; i++) {
        // another thread still reads its x of the round before
        s.x[at.tid] = x;
        block_sync();
        x = s.x[last - at.tid];
    }
    a.out[at.x * n_threads + at.tid] = x;
}

constexpr int missing_warp_barrier_line = __LINE__ + 5;
void          missing_warp_barrier(const void * arguments, const WorkPlace & at, void * memory) {
    const Args & a                   = args_of(arguments);
    Shared &     s                   = *static_cast<Shared *>(memory);
    s.x[at.tid]                      = a.in[at.x * n_threads + at.tid];
    a.out[at.x * n_threads + at.tid] = s.x[at.tid ^ 1u];
}

constexpr int warp_barrier_for_block_line = __LINE__ + 6;
void          warp_barrier_for_block(const void * arguments, const WorkPlace & at, void * memory) {
    const Args & a = args_of(arguments);
    Shared &     s = *static_cast<Shared *>(memory);
    s.x[at.tid]    = a.in[at.x * n_threads + at.tid];
    warp_sync();
    a.out[at.x * n_threads + at.tid] = s.x[last - at.tid];
}

constexpr int two_writers_line = __LINE__ + 3;
void          two_writers(const void * arguments, const WorkPlace & at, void *) {
    const Args & a                       = args_of(arguments);
    a.out[at.x * n_threads + at.tid / 2] = 1.0f;
}

constexpr int blocks_race_line = __LINE__ + 3;
void          blocks_race(const void * arguments, const WorkPlace & at, void *) {
    const Args & a = args_of(arguments);
    a.out[at.tid]  = float(at.x);
}

constexpr int read_outside_line = __LINE__ + 3;
void          read_outside(const void * arguments, const WorkPlace & at, void *) {
    const Args & a                   = args_of(arguments);
    a.out[at.x * n_threads + at.tid] = a.in[at.x * n_threads + at.tid + 1];
}

constexpr int write_outside_line = __LINE__ + 3;
void          write_outside(const void * arguments, const WorkPlace & at, void *) {
    const Args & a                            = args_of(arguments);
    a.out[int(at.x * n_threads + at.tid) - 1] = 0.0f;
}

constexpr int shared_outside_line = __LINE__ + 3;
void          shared_outside(const void *, const WorkPlace & at, void * memory) {
    Shared & s      = *static_cast<Shared *>(memory);
    s.x[at.tid + 1] = 0.0f;
}

constexpr int write_to_input_line = __LINE__ + 3;
void          write_to_input(const void * arguments, const WorkPlace & at, void *) {
    const Args & a                                       = args_of(arguments);
    const_cast<float *>(a.in)[at.x * n_threads + at.tid] = 0.0f;
}

constexpr int null_line = __LINE__ + 3;
void          null(const void * arguments, const WorkPlace & at, void *) {
    const float * volatile nothing = nullptr;
    args_of(arguments).out[at.tid] = nothing[at.tid];
}

constexpr int divergent_exchange_line = __LINE__ + 4;
void          divergent_exchange(const void * arguments, const WorkPlace & at, void *) {
    const Args & a = args_of(arguments);
    if (at.tid < 5) {
        a.out[at.x * n_threads + at.tid] = warp_xor(float(at.tid), 1u);
    }
}

constexpr int divergent_barrier_line = __LINE__ + 5;
void          divergent_barrier(const void *, const WorkPlace & at, void *) {
    if (at.tid == 40) {
        return;
    }
    block_sync();
}

constexpr int other_barrier_line = __LINE__ + 3;
void          other_barrier(const void *, const WorkPlace & at, void *) {
    if (at.tid < 32) {
        block_sync();
    } else {
        block_sync();
    }
}

constexpr int other_mask_line = __LINE__ + 3;
void          other_mask(const void * arguments, const WorkPlace & at, void *) {
    const Args & a                   = args_of(arguments);
    a.out[at.x * n_threads + at.tid] = warp_xor(1.0f, at.tid % 2 ? 1u : 2u);
}

// Not a fault that can be reported, but seen in what comes out.
void reads_unwritten(const void * arguments, const WorkPlace & at, void * memory) {
    args_of(arguments).out[at.x * n_threads + at.tid] = static_cast<Shared *>(memory)->x[at.tid];
}

struct Case {
    const char * name;
    void (*run)(const void * arguments, const WorkPlace & place, void * shared);
    const char * kind; // of the fault
    int          line;
};

const Case faulty[] = {
    {"missing barrier", missing_barrier, "race", missing_barrier_line},
    {"barrier too late", barrier_too_late, "race", barrier_too_late_line - 1},
    {"missing warp barrier", missing_warp_barrier, "race", missing_warp_barrier_line},
    {"warp barrier for a block's", warp_barrier_for_block, "race", warp_barrier_for_block_line},
    {"two writers", two_writers, "race", two_writers_line},
    {"blocks race", blocks_race, "race", blocks_race_line},
    {"read outside", read_outside, "out of bounds", read_outside_line},
    {"write outside", write_outside, "out of bounds", write_outside_line},
    {"shared outside", shared_outside, "out of bounds", shared_outside_line},
    {"write to input", write_to_input, "only read", write_to_input_line},
    {"null", null, "out of bounds", null_line},
    {"divergent exchange", divergent_exchange, "divergence", divergent_exchange_line},
    {"divergent barrier", divergent_barrier, "divergence", divergent_barrier_line},
    {"other barrier", other_barrier, "divergence", other_barrier_line},
    {"other mask", other_mask, "divergence", other_mask_line},
};

int n_wrong = 0;

void expect(bool good, const std::string & what) {
    n_wrong += !good;
    if (!good) {
        std::printf("gpu_emulator: %s\n", what.c_str());
    }
}

struct Outcome {
    std::vector<float>       out;
    std::vector<std::string> faults;
};

Outcome outcome(void (*run)(const void *, const WorkPlace &, void *), TurnOrder order, bool watched = true) {
    std::vector<float> in(n_blocks * n_threads), out(in.size(), -1.0f);
    for (size_t i = 0; i < in.size(); i++) {
        in[i] = float(i) * 0.37f;
    }
    emulator_watch().allow(in.data(), in.size() * sizeof(float), "in", false);
    emulator_watch().allow(out.data(), out.size() * sizeof(float), "out", true);
    const Args           args      = {in.data(), out.data()};
    const EmulatedKernel kernel    = {"kernel", run, n_threads, sizeof(args), sizeof(Shared)};
    const uint32_t       blocks[3] = {n_blocks, 1, 1};
    EmulatorReport       report;
    report.order    = order;
    report.watch    = watched;
    const bool good = emulate(kernel, blocks, &args, report);
    expect(good == report.faults.empty(), "a run that is good has no faults");
    emulator_watch().forget_all();
    return {out, report.faults};
}

void check_right_ones() {
    for (TurnOrder order : turn_orders) {
        for (auto run : {reverse, reverse_in_warp, exchange_twice, loop_with_barriers, warps_apart}) {
            const Outcome o = outcome(run, order);
            expect(o.faults.empty(), "a kernel without fault: " + (o.faults.empty() ? "" : o.faults[0]));
            for (int i = 0; i < n_blocks * n_threads; i++) {
                const int from = run == reverse              ? i / n_threads * n_threads + n_threads - 1 - i % n_threads
                                 : run == loop_with_barriers ? i / n_threads * n_threads + n_threads - 1 - i % n_threads
                                                             : i ^ 31;
                expect(o.out[size_t(i)] == float(from) * 0.37f, "value " + std::to_string(i) + " of a kernel without fault");
            }
        }
        expect(std::isnan(outcome(reads_unwritten, order).out[7]), "shared memory that nobody wrote is NaN");
    }
}

void check_faulty_ones() {
    for (const Case & c : faulty) {
        for (TurnOrder order : turn_orders) {
            const Outcome     o     = outcome(c.run, order);
            const std::string place = "gpu_emulator.cpp:" + std::to_string(c.line);
            const bool        found = o.faults.size() == 1 && o.faults[0].find(c.kind) != std::string::npos &&
                               o.faults[0].find(place) != std::string::npos;
            expect(found, std::string(c.name) + ": wanted " + c.kind + " at " + place +
                              ", got: " + (o.faults.empty() ? "nothing" : o.faults[0]));
        }
    }
}

// What the watch does not see (it is off here), the order of turns shows.
void check_orders() {
    std::set<std::vector<float>> outs;
    for (TurnOrder order : turn_orders) {
        outs.insert(outcome(two_writers, order, false).out);
        outs.insert(outcome(blocks_race, order, false).out);
    }
    expect(outs.size() > 2, "orders of turns give different results where threads race");
}

} // namespace

} // namespace mikv

int main() {
    mikv::check_right_ones();
    mikv::check_faulty_ones();
    mikv::check_orders();
    std::printf("gpu_emulator: %d kernels with a fault, %d failures\n", int(sizeof(mikv::faulty) / sizeof(mikv::faulty[0])),
                mikv::n_wrong);
    return mikv::n_wrong ? 1 : 0;
}
