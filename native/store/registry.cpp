#include "store/registry.h"

#include <map>
#include <mutex>

namespace mikv {

namespace {
std::mutex                                 guard;
std::map<uint64_t, std::shared_ptr<Cache>> caches;
} // namespace

void register_cache(const std::shared_ptr<Cache> & cache) {
    std::lock_guard<std::mutex> lock(guard);
    caches[cache->id()] = cache;
}

void forget_cache(uint64_t id) {
    std::lock_guard<std::mutex> lock(guard);
    caches.erase(id);
}

std::shared_ptr<Cache> find_cache(uint64_t id) {
    std::lock_guard<std::mutex> lock(guard);
    const auto                  entry = caches.find(id);
    return entry == caches.end() ? nullptr : entry->second;
}

} // namespace mikv
