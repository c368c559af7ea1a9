// Memory of a GPU, or of the emulator, for tests; and a KV head of a layer in it.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#if defined(MIKV_CUDA)
#include "backend/cuda/device.h"
#endif
#include "backend/emulated/device.h"
#include "backend/emulated/emulator.h"
#include "backend/gpu/operations.h"
#include "format/head.h"

namespace mikv {

// What a test program was asked for: [cuda] [--quick].
struct GpuChoice {
    GpuQueue queue = {&emulated_device, nullptr};
    bool     quick = false;
    bool     there = true; // this build and machine have the device

    GpuChoice(int argc, char ** argv, EmulatorReport & report) {
        queue.queue = &report;
        for (int i = 1; i < argc; i++) {
            if (std::string(argv[i]) == "--quick") {
                quick = true;
                continue;
            }
#if defined(MIKV_CUDA)
            there = std::string(argv[i]) == "cuda";
            queue = {&cuda_device, there ? cuda_device.open(nullptr) : nullptr};
            there = queue.queue != nullptr;
#else
            there = false;
#endif
        }
    }
};

// An array on the device.
template <class T> class DeviceArray {
public:
    DeviceArray(const GpuQueue & queue, size_t n) : queue_(queue), n_(n) {
        data_ = static_cast<T *>(queue.device->allocate(queue.queue, n * sizeof(T)));
    }
    DeviceArray(const GpuQueue & queue, const std::vector<T> & values) : DeviceArray(queue, values.size()) { write(values); }
    ~DeviceArray() { queue_.device->release(queue_.queue, data_); }
    DeviceArray(const DeviceArray &)             = delete;
    DeviceArray & operator=(const DeviceArray &) = delete;

    T *  data() const { return data_; }
    void write(const std::vector<T> & values) { queue_.device->write(queue_.queue, data_, values.data(), n_ * sizeof(T)); }
    std::vector<T> read() const {
        std::vector<T> values(n_);
        queue_.device->read(queue_.queue, values.data(), data_, n_ * sizeof(T));
        return values;
    }

private:
    GpuQueue queue_;
    T *      data_ = nullptr;
    size_t   n_;
};

// KV heads [n_stream][n_head_kv] of a layer, with everything that belongs to them.
class DeviceHeads {
public:
    // images: what each head's memory holds, layout.total_bytes() of it.
    DeviceHeads(const GpuQueue & queue, const std::vector<HeadLayout> & layouts,
                const std::vector<std::vector<uint8_t>> & images);

    const GpuHead *      data() const { return heads_->data(); }
    std::vector<uint8_t> image(int head) const { return memory_[size_t(head)]->read(); }
    HeadTally            tally(int head) const { return tallies_[size_t(head)]->read()[0]; }
    std::vector<float>   mean_sum(int head) const { return sums_[size_t(head)]->read(); }

private:
    std::vector<std::unique_ptr<DeviceArray<uint8_t>>>   memory_, has_mean_;
    std::vector<std::unique_ptr<DeviceArray<HeadTally>>> tallies_;
    std::vector<std::unique_ptr<DeviceArray<float>>>     sums_;
    std::unique_ptr<DeviceArray<GpuHead>>                heads_;
};

// In the emulator each array of the head is watched by itself: what lies beyond its end is another's.
inline void watch_arrays(const HeadView & h) {
    Watch &    watch = emulator_watch();
    const auto allow = [&](const void * array, size_t size_bytes, const char * name) {
        if (size_bytes) {
            watch.allow(array, size_bytes, name, true);
        }
    };
    watch.forget(h.k_params);
    const size_t cells = size_t(h.n_cells), slots = size_t(h.n_slots), exact = size_t(h.n_exact);
    allow(h.k_params, 2 * cells * size_t(h.k.n_groups()), "k_params");
    allow(h.k_base, cells * size_t(h.k.base_bytes()), "k_base");
    allow(h.v_params, 2 * cells * size_t(h.v.n_groups()), "v_params");
    allow(h.v_base, cells * size_t(h.v.base_bytes()), "v_base");
    allow(h.k_mean, 2 * size_t(h.n_blocks()) * size_t(h.k.dim), "k_mean");
    allow(h.k_refined, slots * size_t(h.k.refinement_bytes()), "k_refined");
    allow(h.v_refined, slots * size_t(h.v.refinement_bytes()), "v_refined");
    allow(h.slot_cell, 4 * slots, "slot_cell");
    allow(h.slot_mass, 4 * slots, "slot_mass");
    allow(h.k_exact, 2 * exact * size_t(h.k.dim), "k_exact");
    allow(h.v_exact, 2 * exact * size_t(h.v.dim), "v_exact");
    allow(h.exact_cell, 4 * exact, "exact_cell");
}

inline DeviceHeads::DeviceHeads(const GpuQueue & queue, const std::vector<HeadLayout> & layouts,
                                const std::vector<std::vector<uint8_t>> & images) {
    std::vector<GpuHead> heads;
    for (size_t i = 0; i < layouts.size(); i++) {
        HeadTally tally = {};
        tally.n_free    = layouts[i].n_slots;
        memory_.push_back(std::make_unique<DeviceArray<uint8_t>>(queue, images[i]));
        has_mean_.push_back(std::make_unique<DeviceArray<uint8_t>>(queue, size_t(layouts[i].n_blocks())));
        sums_.push_back(std::make_unique<DeviceArray<float>>(queue, size_t(layouts[i].k.dim)));
        tallies_.push_back(std::make_unique<DeviceArray<HeadTally>>(queue, std::vector<HeadTally>{tally}));
        GpuHead head = {view_head(layouts[i], memory_.back()->data()), tallies_.back()->data(), sums_.back()->data(),
                        has_mean_.back()->data(), nullptr};
        if (queue.device == &emulated_device) {
            watch_arrays(head.view);
        }
        heads.push_back(head);
    }
    heads_ = std::make_unique<DeviceArray<GpuHead>>(queue, heads);
}

// What was compared, and what was wrong.
struct GpuTally {
    std::string device;
    int         cases = 0, faults = 0;

    void count(bool good, const char * what, double got = 0, double wanted = 0, double bound = 0) {
        cases++;
        if (!good && ++faults <= 20) {
            std::printf("%s: %s: %.9g where the CPU has %.9g, bound %.3g\n", device.c_str(), what, got, wanted, bound);
        }
    }
    void count(bool good, const std::string & what, double got = 0, double wanted = 0, double bound = 0) {
        count(good, what.c_str(), got, wanted, bound);
    }
    // Takes what the emulator has to say of the kernels so far.
    void take(EmulatorReport & report, const std::string & what) {
        for (const std::string & fault : report.faults) {
            faults++;
            std::printf("%s: %s: %s\n", device.c_str(), what.c_str(), fault.c_str());
        }
        report.faults.clear();
    }
};

} // namespace mikv
