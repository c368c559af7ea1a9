// The part of the C API that needs no ggml.
#include <algorithm>
#include <numeric>

#include "backend/cpu/kernels.h"
#include "kernel/load.h"
#include "kernel/store.h"
#include "store/error.h"
#include "store/layers.h"
#include "store/registry.h"
#include "store/step.h"

using namespace mikv;

namespace {

mikv_status no_cache(uint64_t id) {
    return fail(MIKV_ERROR_NOT_FOUND, "no cache has id %llu: its context is gone", (unsigned long long)id);
}

mikv_status check_place(const Cache & cache, int index, int stream) {
    if (index < 0 || index >= cache.shape().n_layer) {
        return fail(MIKV_ERROR_NOT_FOUND, "layer index %d: this cache has %d layers", index, cache.shape().n_layer);
    }
    if (stream < 0 || stream >= cache.shape().n_stream) {
        return fail(MIKV_ERROR_NOT_FOUND, "stream %d: this cache has %d", stream, cache.shape().n_stream);
    }
    return MIKV_OK;
}

mikv_status check_cells(const Cache & cache, int first, int n) {
    if (first < 0 || n < 0 || first > cache.shape().n_cells - n) {
        return fail(MIKV_ERROR_ARGUMENT, "cells %d to %d: this cache has %d", first, first + n - 1, cache.shape().n_cells);
    }
    return MIKV_OK;
}

mikv_status check_row(int dim, int group, int bits, int refined_bits) {
    if ((group != 32 && group != 64) || dim < group || dim % group || bits < 0 || bits == 1 || bits > 4 ||
        refined_bits < bits || refined_bits < 2 || refined_bits > 8 || refined_bits == 7) {
        return fail(MIKV_ERROR_ARGUMENT, "no codec for %d values in groups of %d with %d and %d bits", dim, group, bits,
                    refined_bits);
    }
    return MIKV_OK;
}

} // namespace

extern "C" {

const char * mikv_version(void) { return MIKV_VERSION; }
const char * mikv_last_error(void) { return last_error(); }

void mikv_config_default(mikv_config * config) { *config = default_config(); }

mikv_status mikv_config_check(const mikv_config * config) {
    const mikv_status status = check_config(*config);
    return status == MIKV_OK ? succeed() : status;
}

mikv_status mikv_config_bytes(const mikv_config * config, const mikv_shape * shape, int64_t * size_bytes) {
    std::vector<int> layers(size_t(std::max(0, shape->n_layer))); // nobody said otherwise: from 0 on
    std::iota(layers.begin(), layers.end(), 0);
    CacheLayout layout;
    if (mikv_status status = plan_cache(*config, *shape, layers, &layout)) {
        return status;
    }
    *size_bytes = planned_bytes(layout, *shape);
    return succeed();
}

int32_t      mikv_policy_count(void) { return policy_count(); }
const char * mikv_policy_name(int32_t index) {
    const Policy * policy = policy_at(index);
    return policy ? policy->name : nullptr;
}

mikv_status mikv_policy_register(const char * name, mikv_policy_fn fn, void * user) {
    if (!policy_register(name, fn, user)) {
        return fail(MIKV_ERROR_ARGUMENT,
                    "policy \"%s\" cannot be registered: use a name of 1 to 31 characters that is not built in",
                    name ? name : "");
    }
    return succeed();
}

mikv_status mikv_layers_register(const char * name, const char * table) {
    const mikv_status status = register_layers(name, table);
    return status == MIKV_OK ? succeed() : status;
}

int32_t      mikv_kernel_count(void) { return kernels_count(); }
const char * mikv_kernel_name(int32_t index) {
    const Kernels * set = kernels_at(index);
    return set ? set->name : nullptr;
}
const char * mikv_kernel_selected(void) { return kernels().name; }

mikv_status mikv_kernel_select(const char * name) {
    return kernels_select(name) ? succeed()
                                : fail(MIKV_ERROR_NOT_FOUND, "this machine or build has no kernel set \"%s\"", name);
}

mikv_status mikv_cache_stats(uint64_t id, mikv_stats * stats) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    *stats = cache->stats();
    return succeed();
}

mikv_status mikv_cache_layer_stats(uint64_t id, int32_t index, mikv_layer_stats * stats) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    if (mikv_status status = check_place(*cache, index, 0)) {
        return status;
    }
    *stats = cache->layer_stats(index);
    return succeed();
}

mikv_status mikv_cache_precision(uint64_t id, int32_t index, int32_t stream, uint8_t * out) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    if (mikv_status status = check_place(*cache, index, stream)) {
        return status;
    }
    cache->precision(index, stream, out);
    return succeed();
}

mikv_status mikv_cache_scores(uint64_t id, int32_t index, int32_t stream, float * out) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    if (mikv_status status = check_place(*cache, index, stream)) {
        return status;
    }
    cache->scores(index, stream, out);
    return succeed();
}

const char * mikv_cache_home(uint64_t id) {
    const auto cache = find_cache(id);
    return !cache ? "" : cache->elsewhere() ? cache->elsewhere()->name() : "CPU";
}

mikv_status mikv_cache_create(const mikv_config * config, const mikv_shape * shape, uint64_t * id) {
    if (mikv_status status = check_shape(*shape)) {
        return status;
    }
    std::vector<int> layers(size_t(shape->n_layer));
    for (int i = 0; i < shape->n_layer; i++) {
        layers[size_t(i)] = i;
    }
    std::shared_ptr<Cache> cache;
    if (mikv_status status = Cache::create(*config, *shape, layers, &cache)) {
        return status;
    }
    register_cache(cache);
    *id = cache->id();
    return succeed();
}

mikv_status mikv_cache_free(uint64_t id) {
    if (!find_cache(id)) {
        return no_cache(id);
    }
    forget_cache(id);
    return succeed();
}

mikv_status mikv_cache_step(uint64_t id, int32_t index, const mikv_step * step, int32_t n_threads) {
    const auto cache = find_cache(id);
    return cache ? run_step(*cache, index, *step, n_threads) : no_cache(id);
}

mikv_status mikv_cache_clear(uint64_t id) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    cache->clear();
    return succeed();
}

mikv_status mikv_cache_copy_stream(uint64_t id, int32_t from, int32_t to) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    for (int32_t stream : {from, to}) {
        if (mikv_status status = check_place(*cache, 0, stream)) {
            return status;
        }
    }
    for (int index = 0; index < cache->shape().n_layer && from != to; index++) {
        cache->copy_stream(index, from, to);
    }
    cache->copy_stream_cells(from, to);
    return succeed();
}

mikv_status mikv_cache_read(uint64_t id, int32_t index, int32_t value, int32_t stream, int32_t first_cell, int32_t n,
                            float * out) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    mikv_status status = check_place(*cache, index, stream);
    if (status == MIKV_OK) {
        status = check_cells(*cache, first_cell, n);
    }
    if (status != MIKV_OK) {
        return status;
    }
    cache->read(index, value != 0, stream, first_cell, n, out);
    return succeed();
}

mikv_status mikv_cache_write(uint64_t id, int32_t index, int32_t value, int32_t stream, int32_t first_cell, int32_t n,
                             const float * in) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    mikv_status status = check_place(*cache, index, stream);
    if (status == MIKV_OK) {
        status = check_cells(*cache, first_cell, n);
    }
    if (status != MIKV_OK) {
        return status;
    }
    cache->write(index, value != 0, stream, first_cell, n, in, true);
    return succeed();
}

mikv_status mikv_codec_encode(int32_t dim, int32_t group, int32_t bits, int32_t refined_bits, int32_t end_points,
                              const float * row, uint16_t * params, uint8_t * base, uint8_t * refinement) {
    if (mikv_status status = check_row(dim, group, bits, refined_bits)) {
        return status;
    }
    kernels().encode_row({dim, group, bits, refined_bits, end_points}, row, params, 1, base, refinement);
    return succeed();
}

mikv_status mikv_codec_decode(int32_t dim, int32_t group, int32_t bits, int32_t refined_bits, const uint16_t * params,
                              const uint8_t * base, const uint8_t * refinement, float * row) {
    if (mikv_status status = check_row(dim, group, bits, refined_bits)) {
        return status;
    }
    kernels().decode_row({dim, group, bits, refined_bits}, params, 1, base, refinement, row);
    return succeed();
}

} // extern "C"
