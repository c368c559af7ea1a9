// Caches by id: an id outlives its cache without harm.
#pragma once

#include <memory>

#include "store/cache.h"

namespace mikv {

void                   register_cache(const std::shared_ptr<Cache> & cache);
void                   forget_cache(uint64_t id);
std::shared_ptr<Cache> find_cache(uint64_t id); // null: none of this id

} // namespace mikv
