// Addresses without memory: ggml wants every tensor to have one, and nobody may look behind those of the KV cache.
#pragma once

#include <cstddef>

namespace mikv {

void * reserve_addresses(size_t size_bytes); // null: none left
void   release_addresses(void * base, size_t size_bytes);

} // namespace mikv
