#include "store/gpu_cache.h"

#include <algorithm>
#include <cstring>

#include "kernel/batch.h"
#include "store/alibi.h"
#include "store/gpu_policy.h"

namespace mikv {

namespace {

constexpr size_t alignment = 256;

size_t padded(size_t size_bytes) { return (size_bytes + alignment - 1) / alignment * alignment; }

constexpr size_t cell_bytes = 4; // born, seen, staged

} // namespace

std::string gpu_refusal(const Cache & cache) {
    const mikv_config & c = cache.config();
    CommitArgs          unused{};
    if (cache.pooled() || c.refined_bits == exact_bits) {
        return "it keeps fewer rows than cells, or refines rows to f16";
    }
    if (c.balance || c.lead_share > 0.0f) {
        return "its keys are balanced, or some of their channels have bits of their own";
    }
    if (!gpu_policy(cache.policy(), &unused)) {
        return std::string("its policy, ") + c.policy + ", runs on the CPU only";
    }
    if (cache.policy().policy->probes.drawn && cache.shape().n_stream > 1) {
        return "its policy draws other queries for each stream";
    }
    if (row_dim(cache.shape().head_dim_k) > largest_dim || row_dim(cache.shape().head_dim_v) > largest_dim) {
        return "its heads have more than " + std::to_string(largest_dim) + " values";
    }
    return "";
}

GpuCache::GpuCache(const GpuQueue & queue, Cache & cache)
    : queue_(queue), cache_(cache), now_(size_t(cache.shape().n_stream)), home_(size_t(cache.shape().n_layer), true),
      changed_(size_t(cache.shape().n_layer), true), empty_(true) {
    for (int stream = 0; stream < cache.shape().n_stream; stream++) {
        empty_ = empty_ && cache.cells(stream).n_held() == 0;
    }
}

size_t GpuCache::n_heads() const { return cache_.states_.size(); }

GpuCache * GpuCache::move(const GpuQueue & queue, Cache & cache) {
    std::unique_ptr<GpuCache> gpu(new GpuCache(queue, cache));
    const mikv_shape &        s = cache.shape();
    for (int layer = 0; layer < s.n_layer; layer++) {
        gpu->rows_.push_back(std::make_unique<GpuMemory>(queue, cache.memory_[size_t(layer)]->size_bytes()));
        if (!gpu->rows_.back()->there()) {
            return nullptr;
        }
    }
    const size_t cells = size_t(s.n_stream) * s.n_cells;
    gpu->facts_        = std::make_unique<GpuMemory>(queue, padded(gpu->n_heads() * sizeof(HeadTally)) +
                                                                padded(cache.mean_sums_.size() * sizeof(float)) +
                                                                padded(cache.has_mean_.size()) + gpu->n_heads() * sizeof(GpuHead));
    gpu->cells_        = std::make_unique<GpuMemory>(queue, 3 * padded(cells * cell_bytes) + padded(cells) +
                                                                size_t(s.n_stream) * sizeof(CellClock));
    if (!gpu->facts_->there() || !gpu->cells_->there() || !gpu->place_heads()) {
        return nullptr;
    }
    GpuCache * here = gpu.get();
    cache.live(std::move(gpu));
    return here;
}

// --- where things are -----------------------------------------------------------------------------------------------------------

uint8_t * GpuCache::words(int array, int stream) const {
    const size_t stream_bytes = size_t(cache_.shape().n_cells) * cell_bytes;
    return cells_->data() + size_t(array) * padded(size_t(cache_.shape().n_stream) * stream_bytes) +
           size_t(stream) * stream_bytes;
}

uint8_t * GpuCache::flags(int stream) const { return words(3, 0) + size_t(stream) * cache_.shape().n_cells; }

CellClock * GpuCache::clock(int stream) const {
    return reinterpret_cast<CellClock *>(flags(0) + padded(size_t(cache_.shape().n_stream) * cache_.shape().n_cells)) + stream;
}

const GpuHead * GpuCache::heads(int layer, int stream) const {
    const size_t before = padded(n_heads() * sizeof(HeadTally)) + padded(cache_.mean_sums_.size() * sizeof(float)) +
                          padded(cache_.has_mean_.size());
    return reinterpret_cast<const GpuHead *>(facts_->data() + before) + cache_.flat(layer, stream, 0);
}

bool GpuCache::place_heads() {
    const mikv_shape &   s       = cache_.shape();
    HeadTally *          tallies = reinterpret_cast<HeadTally *>(facts_->data());
    uint8_t *            sums    = facts_->data() + padded(n_heads() * sizeof(HeadTally));
    uint8_t *            has     = sums + padded(cache_.mean_sums_.size() * sizeof(float));
    std::vector<GpuHead> heads(n_heads());
    for (int layer = 0; layer < s.n_layer; layer++) {
        for (int stream = 0; stream < s.n_stream; stream++) {
            uint8_t * memory = rows_[size_t(layer)]->data() + cache_.layout_.layer_bytes(layer) * size_t(stream);
            for (int h = 0; h < s.n_head_kv; h++) {
                const HeadLayout & layout = cache_.layout_.at(layer, h);
                const size_t       i      = size_t(cache_.flat(layer, stream, h));
                heads[i].view             = view_head(layout, memory);
                heads[i].tally            = tallies + i;
                heads[i].mean_sum         = reinterpret_cast<float *>(sums) + i * size_t(layout.k.dim);
                heads[i].has_mean         = has + i * size_t(cache_.layout_.n_blocks);
                heads[i].balancer         = nullptr;
                memory += layout.total_bytes();
            }
        }
    }
    return queue_.device->write(queue_.queue, const_cast<GpuHead *>(this->heads(0, 0)), heads.data(),
                                heads.size() * sizeof(GpuHead)) == gpu_ok;
}

// --- there and back -------------------------------------------------------------------------------------------------------------

void GpuCache::take_facts() {
    const auto read = [&](void * to, const void * from, size_t n) { note(queue_.device->read(queue_.queue, to, from, n)); };
    std::vector<HeadTally> tallies(n_heads());
    const uint8_t *        sums = facts_->data() + padded(n_heads() * sizeof(HeadTally));
    read(tallies.data(), facts_->data(), tallies.size() * sizeof(HeadTally));
    read(cache_.mean_sums_.data(), sums, cache_.mean_sums_.size() * sizeof(float));
    if (!cache_.has_mean_.empty()) {
        read(cache_.has_mean_.data(), sums + padded(cache_.mean_sums_.size() * sizeof(float)), cache_.has_mean_.size());
    }
    for (size_t i = 0; i < tallies.size(); i++) {
        HeadState & s = cache_.states_[i];
        s.n_free      = tallies[i].n_free;
        s.n_refined   = tallies[i].n_refined;
        s.n_exact     = tallies[i].n_exact;
        s.mean_count  = tallies[i].mean_count;
        s.demotions   = tallies[i].demotions;
        for (int k = 0; k < 3; k++) {
            s.mass[k] = double(tallies[i].mass[k]) / double(mass_unit);
        }
    }
    take_cells();
}

void GpuCache::take_cells() {
    const mikv_shape &     s     = cache_.shape();
    const size_t           cells = size_t(s.n_stream) * s.n_cells;
    std::vector<uint32_t>  born(cells), seen(cells);
    std::vector<int32_t>   staged(cells);
    std::vector<uint8_t>   flags(cells);
    std::vector<CellClock> clocks(size_t(s.n_stream));
    const auto read = [&](void * to, const void * from, size_t n) { note(queue_.device->read(queue_.queue, to, from, n)); };
    read(born.data(), this->born(0), cells * 4);
    read(seen.data(), this->seen(0), cells * 4);
    read(staged.data(), this->staged(0), cells * 4);
    read(flags.data(), this->flags(0), cells);
    read(clocks.data(), clock(0), clocks.size() * sizeof(CellClock));
    for (int stream = 0; stream < s.n_stream; stream++) {
        const size_t at = size_t(stream) * s.n_cells;
        cache_.cells(stream).restore(
            {&born[at], &seen[at], &flags[at], &staged[at], clocks[size_t(stream)].now, clocks[size_t(stream)].batch});
    }
}

void GpuCache::take_layer(int layer) {
    Memory & home = *cache_.memory_[size_t(layer)];
    note(queue_.device->read(queue_.queue, home.data(), rows_[size_t(layer)]->data(), home.size_bytes()));
    for (int stream = 0; stream < cache_.shape().n_stream; stream++) {
        for (int h = 0; h < cache_.shape().n_head_kv; h++) {
            Head             head = cache_.head(layer, stream, h);
            const HeadView & v    = head.view;
            if (!v.whole()) {
                set_free_list(head, Held::slots, free_order(v.slot_cell, v.n_slots));
            }
        }
    }
}

void GpuCache::give_facts() {
    const auto write = [&](void * to, const void * from, size_t n) { note(queue_.device->write(queue_.queue, to, from, n)); };
    std::vector<HeadTally> tallies(n_heads());
    for (size_t i = 0; i < tallies.size(); i++) {
        const HeadState & s   = cache_.states_[i];
        tallies[i].n_free     = s.n_free;
        tallies[i].n_refined  = s.n_refined;
        tallies[i].n_exact    = s.n_exact;
        tallies[i].mean_count = s.mean_count;
        tallies[i].demotions  = s.demotions;
        for (int k = 0; k < 3; k++) {
            tallies[i].mass[k] = int64_t(s.mass[k] * double(mass_unit));
        }
    }
    uint8_t * sums = facts_->data() + padded(n_heads() * sizeof(HeadTally));
    write(facts_->data(), tallies.data(), tallies.size() * sizeof(HeadTally));
    write(sums, cache_.mean_sums_.data(), cache_.mean_sums_.size() * sizeof(float));
    if (!cache_.has_mean_.empty()) {
        write(sums + padded(cache_.mean_sums_.size() * sizeof(float)), cache_.has_mean_.data(), cache_.has_mean_.size());
    }
    give_cells();
}

void GpuCache::give_cells() {
    const mikv_shape & s     = cache_.shape();
    const size_t       cells = size_t(s.n_cells);
    const auto write = [&](void * to, const void * from, size_t n) { note(queue_.device->write(queue_.queue, to, from, n)); };
    for (int stream = 0; stream < s.n_stream; stream++) {
        const CellImage image = cache_.cells(stream).image();
        const CellClock now   = {image.now, image.batch};
        write(born(stream), image.born, cells * 4);
        write(seen(stream), image.seen, cells * 4);
        write(staged(stream), image.staged, cells * 4);
        write(flags(stream), image.flags, cells);
        write(clock(stream), &now, sizeof(now));
        now_[size_t(stream)] = image.now;
    }
}

void GpuCache::give_layer(int layer) {
    const Memory & home = *cache_.memory_[size_t(layer)];
    note(queue_.device->write(queue_.queue, rows_[size_t(layer)]->data(), home.data(), home.size_bytes()));
}

// Of an emptied cache, only who owns what matters, and the means.
void GpuCache::give_empty_layer(int layer) {
    const auto move = [&](const void * array, size_t size_bytes) {
        if (size_bytes) {
            const size_t offset = size_t(static_cast<const uint8_t *>(array) - cache_.memory_[size_t(layer)]->data());
            note(queue_.device->write(queue_.queue, rows_[size_t(layer)]->data() + offset, array, size_bytes));
        }
    };
    for (int stream = 0; stream < cache_.shape().n_stream; stream++) {
        for (int h = 0; h < cache_.shape().n_head_kv; h++) {
            const HeadView v = cache_.head(layer, stream, h).view;
            move(v.slot_cell, sizeof(uint32_t) * size_t(v.n_maps()));
            move(v.exact_cell, sizeof(uint32_t) * size_t(v.n_exact));
            move(v.k_mean, sizeof(uint16_t) * size_t(v.n_blocks()) * size_t(v.k.dim));
        }
    }
}

void GpuCache::bring_home(int layer, bool change) {
    std::lock_guard<std::recursive_mutex> lock(guard_);
    if (!facts_home_) {
        take_facts();
        facts_home_ = true;
    }
    for (int i = 0; i < cache_.shape().n_layer; i++) {
        if (i != layer && layer != all_layers) {
            continue;
        }
        if (!home_[size_t(i)]) {
            take_layer(i);
            home_[size_t(i)] = true;
        }
        changed_[size_t(i)] = changed_[size_t(i)] || change;
        empty_              = empty_ && !change;
    }
    facts_changed_ = facts_changed_ || change;
}

void GpuCache::emptied() {
    std::lock_guard<std::recursive_mutex> lock(guard_);
    bring_home(no_layer, true); // the clocks go on
    std::fill(home_.begin(), home_.end(), true);
    std::fill(changed_.begin(), changed_.end(), true);
    facts_home_ = facts_changed_ = empty_ = true;
}

int GpuCache::bring_back() {
    std::lock_guard<std::recursive_mutex> lock(guard_);
    if (facts_changed_) {
        give_facts();
    }
    for (int layer = 0; layer < cache_.shape().n_layer; layer++) {
        const size_t i = size_t(layer);
        if (changed_[i]) {
            empty_ ? give_empty_layer(layer) : give_layer(layer);
        }
        if (home_[i]) { // the pages go back to the system
            cache_.memory_[i]->allocate(cache_.memory_[i]->size_bytes());
        }
        home_[i] = changed_[i] = false;
    }
    facts_home_ = facts_changed_ = empty_ = false;
    const int error                       = error_;
    error_                                = 0;
    return error;
}

// --- what steps work in ---------------------------------------------------------------------------------------------------------

uint8_t * GpuCache::scratch(size_t size_bytes) {
    if (!scratch_ || scratch_->size_bytes() < size_bytes) {
        scratch_.reset(); // before there are two
        scratch_ = std::make_unique<GpuMemory>(queue_, size_bytes);
    }
    return scratch_->data();
}

int64_t GpuCache::scratch_bytes() const {
    return loaded_bytes_ + int64_t((scratch_ ? scratch_->size_bytes() : 0) + (probes_ ? probes_->size_bytes() : 0));
}

const float * GpuCache::slopes(float max_bias, int n_head, bool * good) {
    if (max_bias <= 0.0f) {
        return nullptr;
    }
    std::unique_ptr<GpuMemory> & memory = slopes_[{max_bias, n_head}];
    if (!memory) {
        std::vector<float> slope;
        for (int head = 0; head < n_head; head++) {
            slope.push_back(alibi_slope(max_bias, n_head, head));
        }
        memory = std::make_unique<GpuMemory>(queue_, slope.size() * sizeof(float));
        if (!memory->there() ||
            queue_.device->write(queue_.queue, memory->data(), slope.data(), memory->size_bytes()) != gpu_ok) {
            *good = false;
        }
    }
    return reinterpret_cast<const float *>(memory->data());
}

const int32_t * GpuCache::probes(const std::vector<int> & tokens) {
    const std::vector<int32_t> narrow(tokens.begin(), tokens.end());
    const size_t               size_bytes = narrow.size() * sizeof(int32_t);
    if (!probes_ || probes_->size_bytes() < size_bytes) {
        probes_ = std::make_unique<GpuMemory>(queue_, size_bytes);
    }
    if (!probes_->there() || queue_.device->write(queue_.queue, probes_->data(), narrow.data(), size_bytes) != gpu_ok) {
        return nullptr;
    }
    return reinterpret_cast<const int32_t *>(probes_->data());
}

} // namespace mikv
