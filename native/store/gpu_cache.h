// A cache on a GPU: its heads' arrays and what is known of its cells in memory of the device, where kernels work on them. The cache at home keeps the
// shape and the configuration, and takes the rest back whenever the host reads or changes it (state files, shifts, statistics).
#pragma once

#include <map>
#include <mutex>
#include <string>

#include "backend/gpu/operations.h"
#include "store/cache.h"

namespace mikv {

// Why kernels cannot serve a cache; empty: they can.
std::string gpu_refusal(const Cache & cache);

// Memory of a device, given back with this.
class GpuMemory {
public:
    GpuMemory(const GpuQueue & queue, size_t size_bytes)
        : queue_(queue), data_(size_bytes ? queue.device->allocate(queue.queue, size_bytes) : nullptr),
          size_bytes_(size_bytes) {}
    ~GpuMemory() {
        if (data_) {
            queue_.device->release(queue_.queue, data_);
        }
    }
    GpuMemory(const GpuMemory &)             = delete;
    GpuMemory & operator=(const GpuMemory &) = delete;

    uint8_t * data() const { return static_cast<uint8_t *>(data_); }
    size_t    size_bytes() const { return data_ ? size_bytes_ : 0; }
    bool      there() const { return data_ || size_bytes_ == 0; }

private:
    GpuQueue queue_;
    void *   data_;
    size_t   size_bytes_;
};

class GpuCache : public Elsewhere {
public:
    // Takes the cache to the device, and hands itself to the cache; null: the device has not so much memory, and the cache stays as it is.
    static GpuCache * move(const GpuQueue & queue, Cache & cache);

    void         bring_home(int layer, bool change) override;
    void         emptied() override;
    const char * name() const override { return queue_.device->name; }
    int64_t      metadata_bytes() const override { return int64_t(facts_->size_bytes() + cells_->size_bytes()); }
    int64_t      scratch_bytes() const override;
    void         note_loaded(int64_t size_bytes) { loaded_bytes_ = size_bytes; } // of the inner device's attention: scratch too

    // Before steps are queued: the device has everything that the host changed, and what the host brought home is out of date from now on.
    // gpu_ok or the device's error.
    int bring_back();

    Cache &          cache() { return cache_; }
    const GpuQueue & queue() const { return queue_; }
    // Room for a step, kept for the next one; null: there is not so much memory.
    uint8_t * scratch(size_t size_bytes);
    // ALiBi slopes of all query heads on the device; null: all are 1, and also if there is no memory, then *good is false.
    const float * slopes(float max_bias, int n_head, bool * good);
    // Tokens whose queries are probed, on the device from now on.
    const int32_t * probes(const std::vector<int> & tokens);
    const int32_t * probed() const { return probes_ ? reinterpret_cast<const int32_t *>(probes_->data()) : nullptr; }

    // Arrays of the argument structs, for streams from this one on.
    const GpuHead * heads(int layer, int stream) const;
    uint32_t *      born(int stream) const { return reinterpret_cast<uint32_t *>(words(0, stream)); }
    uint32_t *      seen(int stream) const { return reinterpret_cast<uint32_t *>(words(1, stream)); }
    int32_t *       staged(int stream) const { return reinterpret_cast<int32_t *>(words(2, stream)); }
    uint8_t *       flags(int stream) const;
    CellClock *     clock(int stream) const;
    uint32_t        now(int stream) const { return now_[size_t(stream)]; } // tokens stored, with those of the steps queued
    void            count(int stream, int n_tokens) { now_[size_t(stream)] += uint32_t(n_tokens); }

private:
    GpuCache(const GpuQueue & queue, Cache & cache);
    bool      place_heads();
    uint8_t * words(int array, int stream) const; // of the array of cells, 4 bytes each
    size_t    n_heads() const;
    void      note(int error) { error_ = error_ ? error_ : error; }
    void      take_facts();
    void      take_layer(int layer);
    void      give_facts();
    void      give_layer(int layer);
    void      give_empty_layer(int layer);
    void      take_cells();
    void      give_cells();

    GpuQueue                                queue_;
    Cache &                                 cache_;
    std::recursive_mutex                    guard_;
    std::vector<std::unique_ptr<GpuMemory>> rows_;  // [n_layer]
    std::unique_ptr<GpuMemory>              facts_; // tallies, mean sums, has_mean and the GpuHeads of all heads
    std::unique_ptr<GpuMemory>              cells_; // born, seen, staged, flags, clock of all streams
    std::unique_ptr<GpuMemory>              scratch_, probes_;
    std::map<std::pair<float, int>, std::unique_ptr<GpuMemory>> slopes_;
    std::vector<uint32_t>                                       now_; // [n_stream]
    std::vector<bool> home_, changed_; // [n_layer]: the cache has the layer's rows; and they are newer than the device's
    bool              facts_home_ = true, facts_changed_ = true, empty_;
    int64_t           loaded_bytes_ = 0;
    int               error_        = 0; // the first one of a transfer
};

} // namespace mikv
