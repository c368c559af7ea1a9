#include "ggml/buffer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "ggml-impl.h"
#include "ggml/address.h"
#include "ggml/gpu.h"
#include "ggml/transfers.h"
#include "store/error.h"
#include "store/registry.h"

namespace mikv {

namespace {

KvBuffer * buffer_of(ggml_backend_buffer_t buffer) { return static_cast<KvBuffer *>(buffer->context); }

// --- ggml's interface --------------------------------------------------------------------------------------------------------

void free_buffer(ggml_backend_buffer_t buffer) { delete buffer_of(buffer); }

void * get_base(ggml_backend_buffer_t buffer) { return buffer_of(buffer)->base(); }

ggml_status init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    if (!tensor->view_src) {
        tensor->extra = buffer_of(buffer)->claim(tensor->name);
    }
    return GGML_STATUS_SUCCESS;
}

// Calls work(row, n_rows, bytes into the first row) for the rows that [offset, offset + size) of the KV tensor touches.
struct RowSpan {
    int64_t first, n;
    size_t  skip; // bytes of the first row before the span
};

RowSpan rows_of(const ggml_tensor * root, size_t offset, size_t size) {
    const size_t  row_bytes = ggml_row_size(root->type, root->ne[0]);
    const int64_t first     = int64_t(offset / row_bytes);
    const int64_t last      = int64_t((offset + size + row_bytes - 1) / row_bytes);
    return {first, last - first, offset - size_t(first) * row_bytes};
}

const ggml_tensor * root_of(const ggml_tensor * t) { return t->view_src ? t->view_src : t; }

std::vector<uint8_t> read_logical(const ggml_tensor * root, const RowSpan & span) {
    const KvTensor &     kv        = *static_cast<KvTensor *>(root->extra);
    const size_t         row_bytes = ggml_row_size(root->type, root->ne[0]);
    std::vector<float>   rows(size_t(span.n * root->ne[0]));
    std::vector<uint8_t> bytes(size_t(span.n) * row_bytes);
    kv.buffer->read_rows(kv, span.first, span.n, rows.data());
    ggml_get_type_traits(root->type)->from_float_ref(rows.data(), bytes.data(), span.n * root->ne[0]);
    return bytes;
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    if (note_transfer(tensor, data, offset, size)) {
        return;
    }
    const ggml_tensor *        root  = root_of(tensor);
    const RowSpan              span  = rows_of(root, kv_offset(tensor) + offset, size);
    const std::vector<uint8_t> bytes = read_logical(root, span);
    std::memcpy(data, bytes.data() + span.skip, size);
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    if (note_transfer(tensor, data, offset, size)) {
        return;
    }
    const ggml_tensor *  root = root_of(tensor);
    const KvTensor &     kv   = *static_cast<KvTensor *>(root->extra);
    const RowSpan        span = rows_of(root, kv_offset(tensor) + offset, size);
    std::vector<uint8_t> bytes;
    if (span.skip || size % ggml_row_size(root->type, root->ne[0])) { // parts of rows: the rest stays as it is
        bytes = read_logical(root, span);
        std::memcpy(bytes.data() + span.skip, data, size);
        data = bytes.data();
    }
    std::vector<float> rows(size_t(span.n * root->ne[0]));
    ggml_get_type_traits(root->type)->to_float(data, rows.data(), span.n * root->ne[0]);
    kv.buffer->write_rows(kv, span.first, span.n, rows.data(), true);
}

void memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    const std::vector<uint8_t> bytes(size, value);
    set_tensor(buffer, tensor, bytes.data(), offset, size);
}

// Whole streams of one KV tensor: what seq_cp between streams does, keys and values after each other. Anything else: false, and ggml goes
// through the logical type.
bool cpy_tensor(ggml_backend_buffer_t, const ggml_tensor * src, ggml_tensor * dst) {
    const ggml_tensor * root = root_of(dst);
    KvTensor *          kv   = kv_tensor(dst);
    if (!kv || kv_tensor(src) != kv) {
        return false;
    }
    const size_t stream_bytes = ggml_row_size(root->type, root->ne[0]) * size_t(root->ne[1]);
    if (ggml_nbytes(src) != stream_bytes || ggml_nbytes(dst) != stream_bytes || kv_offset(src) % stream_bytes ||
        kv_offset(dst) % stream_bytes) {
        return false;
    }
    const int from = int(kv_offset(src) / stream_bytes), to = int(kv_offset(dst) / stream_bytes);
    Cache &   cache = kv->buffer->cache(*kv);
    if (from != to) { // a row's key and value share their place, so both are copied when either is asked for
        cache.copy_stream(kv->index, from, to);
        cache.copy_stream_cells(from, to);
    }
    return true;
}

void clear(ggml_backend_buffer_t buffer, uint8_t) {
    KvBuffer * kv = buffer_of(buffer);
    for (size_t i = 0; i < kv->n_caches() && !is_watching(); i++) {
        kv->cache_at(i).clear();
    }
}

const ggml_backend_buffer_i buffer_interface = {
    /* .free_buffer   = */ free_buffer,
    /* .get_base      = */ get_base,
    /* .init_tensor   = */ init_tensor,
    /* .memset_tensor = */ memset_tensor,
    /* .set_tensor    = */ set_tensor,
    /* .get_tensor    = */ get_tensor,
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ cpy_tensor,
    /* .clear         = */ clear,
    /* .reset         = */ nullptr,
};

const char * owned_name(ggml_backend_buffer_type_t buft) { return static_cast<Device *>(buft->context)->name.c_str(); }
size_t       owned_alignment(ggml_backend_buffer_type_t) { return 64; }
size_t       owned_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor * t) {
    return kv_tensor_bytes(static_cast<Device *>(buft->context)->config, t);
}
bool                  owned_is_host(ggml_backend_buffer_type_t) { return false; }
ggml_backend_buffer_t owned_alloc(ggml_backend_buffer_type_t, size_t) { return nullptr; }

// Guessed until a graph shows them.
int guess_head_dim(int64_t n_embd) { return n_embd % 64 == 0 ? 64 : n_embd % 32 == 0 ? 32 : int(n_embd); }

// llama.cpp's own rotation, of quantized caches (llama-kv-cache.cpp, attn_rot_k and attn_rot_v).
bool llama_rotates(const mikv_shape & shape) { return shape.head_dim_k % 64 == 0 || shape.head_dim_v % 64 == 0; }

// The cache that a layer's keys and values of these widths would be, as far as known.
mikv_shape shape_of(const mikv_config & config, int n_layer, int64_t k_embd, int64_t v_embd, int64_t n_cells,
                    int64_t n_stream) {
    int dim_k = config.head_dim_k ? config.head_dim_k : guess_head_dim(k_embd);
    int dim_v = config.head_dim_v ? config.head_dim_v : guess_head_dim(v_embd);
    if (k_embd % dim_k || v_embd % dim_v || k_embd / dim_k != v_embd / dim_v) { // one head for all: always right in width
        dim_k = int(k_embd);
        dim_v = int(v_embd);
    }
    return {n_layer, int32_t(k_embd / dim_k), int32_t(n_cells), int32_t(n_stream), dim_k, dim_v};
}

} // namespace

bool parse_kv_name(const char * name, int * layer, bool * value) {
    char kind = 0, rest = 0;
    if (std::sscanf(name, "cache_%c_l%d%c", &kind, layer, &rest) != 2 || (kind != 'k' && kind != 'v')) {
        return false;
    }
    *value = kind == 'v';
    return true;
}

KvTensor * kv_tensor(const ggml_tensor * t) {
    const ggml_tensor * root = root_of(t);
    return root->buffer && root->buffer->iface.free_buffer == free_buffer ? static_cast<KvTensor *>(root->extra) : nullptr;
}

size_t kv_offset(const ggml_tensor * t) {
    const ggml_tensor * root = root_of(t);
    return size_t(static_cast<const char *>(t->data) - static_cast<const char *>(root->data));
}

size_t kv_tensor_bytes(const mikv_config & config, const ggml_tensor * t) {
    // a key and a value tensor of equal width are one layer: half of it each
    const mikv_shape shape = shape_of(config, 1, t->ne[0], t->ne[0], t->ne[1], t->ne[2]);
    mikv_config      c     = config;
    c.budget_bytes         = 0; // a budget is for the whole cache: what it comes to is known when all tensors are
    CacheLayout layout;
    int         layer = 0;
    bool        value = false;
    if (!parse_kv_name(t->name, &layer, &value) || plan_cache(c, shape, {layer}, &layout) != MIKV_OK) {
        return ggml_nbytes(t);
    }
    return layout.layer_bytes(0) * size_t(shape.n_stream) / 2;
}

void init_owned_type(Device & device) {
    device.owned.iface   = {owned_name, owned_alloc, owned_alignment, nullptr, owned_alloc_size, owned_is_host};
    device.owned.device  = &device.handle;
    device.owned.context = &device;
}

bool KvBuffer::make_caches(const std::vector<WantedTensor> & wanted) {
    std::map<int, const WantedTensor *> keys, values;
    for (const WantedTensor & w : wanted) {
        (w.value ? values : keys)[w.layer] = &w;
    }
    std::map<std::pair<int64_t, int64_t>, std::vector<int>> groups; // layers by widths of key and value
    for (const auto & [layer, key] : keys) {
        groups[{key->n_embd, values.at(layer)->n_embd}].push_back(layer);
    }
    const WantedTensor & any = wanted.front();
    quantized_               = any.type != GGML_TYPE_F16;
    for (const auto & [widths, layers] : groups) {
        const mikv_shape shape =
            shape_of(requested_, int(layers.size()), widths.first, widths.second, any.n_cells, any.n_stream);
        mikv_config config = config_for(shape);
        if (config.budget_bytes) { // layers of different widths share the budget by what they would take at f16
            int64_t all = 0;
            for (const auto & group : groups) {
                all += (group.first.first + group.first.second) * int64_t(group.second.size());
            }
            config.budget_bytes = config.budget_bytes * ((widths.first + widths.second) * int64_t(layers.size())) / all;
        }
        std::shared_ptr<Cache> cache;
        if (Cache::create(config, shape, layers, &cache) != MIKV_OK) {
            GGML_LOG_ERROR("mikv: %s\n", last_error());
            return false;
        }
        for (size_t i = 0; i < layers.size(); i++) {
            for (bool value : {false, true}) {
                tensors_.push_back(std::make_unique<KvTensor>(KvTensor{this, int(caches_.size()), int(i), value}));
                names_.push_back({layers[i], value});
            }
        }
        register_cache(cache);
        caches_.push_back(cache);
        widths_.push_back(widths);
    }
    return true;
}

mikv_config KvBuffer::config_for(const mikv_shape & shape) const {
    mikv_config config = requested_;
    config.rotate      = config.rotate && !(quantized_ && llama_rotates(shape));
    return config;
}

// One line for each cache, once its head sizes are certain.
void KvBuffer::announce(Cache & cache) {
    if (!announced_.insert(cache.id()).second) {
        return;
    }
    move_to_gpu(device_, cache);
    const mikv_stats  s = cache.stats();
    const mikv_config c = s.config;
    GGML_LOG_INFO("mikv: %s: %d layers x %d cells, K%d V%d, %.0f %% refined to %d bits by %s: %.2f MiB, %.1f %% of f16\n",
                  device_.name.c_str(), s.shape.n_layer, s.shape.n_cells, c.k_bits, c.v_bits, 100.0 * double(c.refined_share),
                  c.refined_bits, c.policy, double(s.bytes_total) / 1048576.0,
                  100.0 * double(s.bytes_total) / double(s.bytes_f16));
}

void KvBuffer::fit_heads(const KvTensor & tensor, int head_dim_k, int head_dim_v) {
    Cache & old = cache(tensor);
    if (old.shape().head_dim_k == head_dim_k && old.shape().head_dim_v == head_dim_v) {
        announce(old);
        return;
    }
    mikv_shape shape    = old.shape();
    shape.head_dim_k    = head_dim_k;
    shape.head_dim_v    = head_dim_v;
    shape.n_head_kv     = int32_t(widths_[size_t(tensor.cache)].first / head_dim_k);
    mikv_config config  = config_for(shape);
    config.budget_bytes = old.config().budget_bytes;
    std::vector<int> layers;
    for (int i = 0; i < shape.n_layer; i++) {
        layers.push_back(old.layer_number(i));
    }
    std::shared_ptr<Cache> fitted;
    if (Cache::create(config, shape, layers, &fitted) != MIKV_OK) {
        GGML_ABORT("mikv: %s", last_error());
    }
    forget_cache(old.id());
    register_cache(fitted);
    caches_[size_t(tensor.cache)] = fitted;
    announce(*fitted);
}

KvTensor * KvBuffer::claim(const char * tensor_name) {
    int  layer = 0;
    bool value = false;
    if (parse_kv_name(tensor_name, &layer, &value)) {
        for (size_t i = 0; i < names_.size(); i++) {
            if (names_[i] == std::make_pair(layer, value)) {
                return tensors_[i].get();
            }
        }
    }
    return nullptr;
}

KvBuffer::~KvBuffer() {
    for (const auto & cache : caches_) {
        forget_cache(cache->id());
    }
    {
        std::lock_guard<std::recursive_mutex> lock(device_.guard);
        device_.buffers.erase(std::remove(device_.buffers.begin(), device_.buffers.end(), this), device_.buffers.end());
    }
    release_addresses(base_, base_bytes_);
}

void KvBuffer::read_rows(const KvTensor & tensor, int64_t first, int64_t n, float * out) {
    Cache &       c       = cache(tensor);
    const int64_t n_cells = c.shape().n_cells;
    const int64_t width   = int64_t(c.shape().n_head_kv) * (tensor.value ? c.shape().head_dim_v : c.shape().head_dim_k);
    while (n > 0) {
        const int64_t here = std::min(n, n_cells - first % n_cells);
        c.read(tensor.index, tensor.value, int(first / n_cells), int(first % n_cells), int(here), out);
        first += here;
        n -= here;
        out += here * width;
    }
}

void KvBuffer::write_rows(const KvTensor & tensor, int64_t first, int64_t n, const float * in, bool adopt) {
    Cache &       c       = cache(tensor);
    const int64_t n_cells = c.shape().n_cells;
    const int64_t width   = int64_t(c.shape().n_head_kv) * (tensor.value ? c.shape().head_dim_v : c.shape().head_dim_k);
    while (n > 0) {
        const int64_t here = std::min(n, n_cells - first % n_cells);
        c.write(tensor.index, tensor.value, int(first / n_cells), int(first % n_cells), int(here), in, adopt);
        first += here;
        n -= here;
        in += here * width;
    }
}

namespace {

// Why these tensors cannot be kept packed; empty: they can.
std::string refusal(const Device & device, const std::vector<WantedTensor> & wanted) {
    std::map<int, int> kinds; // layer -> 1: keys, 2: values, 3: both
    for (const WantedTensor & w : wanted) {
        kinds[w.layer] |= w.value ? 2 : 1;
        const bool packed_type = w.type == GGML_TYPE_Q8_0 || (w.type == GGML_TYPE_F16 && device.config.compress_f16);
        if (!packed_type) {
            return std::string("its type is ") + ggml_type_name(w.type) + ": choose q8_0 for keys and values";
        }
    }
    for (const auto & [layer, kind] : kinds) {
        if (kind != 3) {
            return "layer " + std::to_string(layer) + " has keys without values (MLA)";
        }
    }
    return "";
}

// One context makes its full cache first, then the windowed one, of other layers and no larger.
bool is_windowed(Device & device, const std::vector<WantedTensor> & wanted) {
    std::vector<int> & family = device.family;
    const bool         known  = std::any_of(wanted.begin(), wanted.end(), [&](const WantedTensor & w) {
        return std::find(family.begin(), family.end(), w.layer) != family.end();
    });
    const bool         second = !known && !family.empty() && wanted.front().n_cells <= device.family_cells;
    if (known || family.empty()) {
        family.clear();
        device.family_cells = wanted.front().n_cells;
    }
    for (const WantedTensor & w : wanted) {
        family.push_back(w.layer);
    }
    return second;
}

} // namespace

ggml_backend_buffer_t KvBuffer::allocate(Device & device, const std::vector<WantedTensor> & wanted, size_t size_bytes) {
    std::lock_guard<std::recursive_mutex> lock(device.guard);
    device.note         = refusal(device, wanted);
    const bool windowed = is_windowed(device, wanted);
    size_t     logical  = 0;
    for (const WantedTensor & w : wanted) {
        logical += w.logical_bytes;
    }
    if (!device.note.empty()) {
        GGML_LOG_INFO("mikv: %s: a cache of %d cells stays as it is (%s, %.2f MiB): %s\n", device.name.c_str(),
                      int(wanted.front().n_cells), ggml_type_name(wanted.front().type), double(logical) / 1048576.0,
                      device.note.c_str());
        return ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(device.inner), logical);
    }
    std::unique_ptr<KvBuffer> buffer(new KvBuffer(device));
    if (windowed) { // the full cache has the whole budget; this one is small, and refined_share decides
        buffer->requested_.budget_bytes = 0;
    }
    buffer->base_bytes_ = logical;
    buffer->base_       = reserve_addresses(logical);
    if (!buffer->base_ || !buffer->make_caches(wanted)) {
        return nullptr;
    }
    device.buffers.push_back(buffer.get());
    return ggml_backend_buffer_init(&device.owned, buffer_interface, buffer.release(), size_bytes);
}

} // namespace mikv
