// The part of the C API that saves and loads caches.
#include <algorithm>

#include "store/error.h"
#include "store/registry.h"
#include "store/state.h"

using namespace mikv;

namespace {

mikv_status no_cache(uint64_t id) {
    return fail(MIKV_ERROR_NOT_FOUND, "no cache has id %llu: its context is gone", (unsigned long long)id);
}

CellList listed(const int64_t * cells, int64_t n) { return CellList(cells, cells + std::max<int64_t>(n, 0)); }

} // namespace

extern "C" {

mikv_status mikv_state_write(uint64_t id, const int64_t * cells, int64_t n, uint8_t * out, int64_t capacity,
                             int64_t * size_bytes) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    cache->bring_home(all_layers, false);
    std::vector<uint8_t> bytes;
    if (mikv_status status = write_state(*cache, listed(cells, n), &bytes)) {
        return status;
    }
    *size_bytes = int64_t(bytes.size());
    if (out && capacity < *size_bytes) {
        return fail(MIKV_ERROR_ARGUMENT, "the state takes %lld bytes, more than the %lld there are: ask for its size first",
                    (long long)*size_bytes, (long long)capacity);
    }
    if (out) {
        std::copy(bytes.begin(), bytes.end(), out);
    }
    return succeed();
}

mikv_status mikv_state_read(uint64_t id, const uint8_t * data, int64_t size_bytes, const int64_t * cells, int64_t n,
                            uint64_t * twin) {
    const auto cache = find_cache(id);
    if (!cache) {
        return no_cache(id);
    }
    const size_t size = size_t(std::max<int64_t>(size_bytes, 0));
    CellList     to   = listed(cells, n);
    if (!cells) {
        if (mikv_status status = state_cells(*cache, data, size, &to)) {
            return status;
        }
    }
    std::shared_ptr<Cache> made;
    if (mikv_status status = read_state(*cache, data, size, to, &made)) {
        return status;
    }
    register_cache(made);
    *twin = made->id();
    return succeed();
}

mikv_status mikv_state_swap(uint64_t id, uint64_t twin) {
    const auto cache = find_cache(id), other = find_cache(twin);
    if (!cache || !other) {
        return no_cache(cache ? twin : id);
    }
    if (!cache->is_twin(*other)) {
        return fail(MIKV_ERROR_ARGUMENT, "caches %llu and %llu are not of one layout: swap one with what was read for it",
                    (unsigned long long)id, (unsigned long long)twin);
    }
    cache->bring_home(all_layers, true);
    other->bring_home(all_layers, true);
    cache->swap_contents(*other);
    return succeed();
}

} // extern "C"
