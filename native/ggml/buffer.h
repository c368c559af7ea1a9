// The buffer behind llama.cpp's KV tensors. llama.cpp sees tensors of its logical type (q8_0); what lies here is a store/Cache.
#pragma once

#include <memory>
#include <set>

#include "ggml/device.h"
#include "store/gpu_cache.h"

namespace mikv {

// What the `extra` of a KV tensor points to.
struct KvTensor {
    KvBuffer * buffer;
    int        cache; // which of the buffer's caches (layers of equal shape share one)
    int        index; // layer in the cache
    bool       value; // a cache_v tensor
};

class KvBuffer {
public:
    // Makes the buffer or passes the cache through to the inner device, with a word why; null: no memory, or a budget that cannot be kept.
    static ggml_backend_buffer_t allocate(Device & device, const std::vector<WantedTensor> & wanted, size_t size_bytes);
    ~KvBuffer();

    Device & device() { return device_; }
    size_t   n_caches() const { return caches_.size(); }
    Cache &  cache(const KvTensor & tensor) { return *caches_[size_t(tensor.cache)]; }
    Cache &  cache_at(size_t i) { return *caches_[i]; }
    // The cache on the device; null: it is on the host.
    GpuCache * gpu(const KvTensor & tensor) { return static_cast<GpuCache *>(cache(tensor).elsewhere()); }
    // The head sizes, learnt from a graph: until then they were guessed. Only while the cache is empty.
    void       fit_heads(const KvTensor & tensor, int head_dim_k, int head_dim_v);
    KvTensor * claim(const char * tensor_name); // null: not a tensor of this buffer
    void *     base() const { return base_; }

    // Rows [first, first + n) of a KV tensor in floats, numbered over all streams.
    void read_rows(const KvTensor & tensor, int64_t first, int64_t n, float * out);
    void write_rows(const KvTensor & tensor, int64_t first, int64_t n, const float * in, bool adopt);

private:
    explicit KvBuffer(Device & device) : device_(device), requested_(device.config) {}
    bool make_caches(const std::vector<WantedTensor> & wanted);
    void announce(Cache & cache);
    // What is asked of a cache with these head sizes.
    mikv_config config_for(const mikv_shape & shape) const;

    Device &                                 device_;
    mikv_config                              requested_;         // the device's config when the buffer was made
    bool                                     quantized_ = false; // what llama.cpp believes the tensors to be
    std::vector<std::shared_ptr<Cache>>      caches_;
    std::vector<std::pair<int64_t, int64_t>> widths_; // n_embd of keys and values of each cache
    std::vector<std::unique_ptr<KvTensor>>   tensors_;
    std::vector<std::pair<int, bool>>        names_; // layer and kind of each of tensors_
    std::set<uint64_t>                       announced_;
    void *                                   base_       = nullptr; // address space that nobody touches: tensors want addresses
    size_t                                   base_bytes_ = 0;
};

// The KV tensor that t is or is a view of; null: none of ours.
KvTensor * kv_tensor(const ggml_tensor * t);
// Bytes from the start of the KV tensor to t's first element, in the logical type.
size_t kv_offset(const ggml_tensor * t);

// A KV tensor by llama.cpp's name for it; false: another tensor.
bool parse_kv_name(const char * name, int * layer, bool * value);

// What get_alloc_size answers for a KV tensor.
size_t kv_tensor_bytes(const mikv_config & config, const ggml_tensor * t);

void init_owned_type(Device & device);

} // namespace mikv
