// What llama.cpp carries between KV tensors and the memory of a state, noted instead of done: so the rows of a state stay packed, and
// nothing needs to know how llama.cpp lays out the rest.
#pragma once

#include <cstddef>
#include <cstdint>

struct ggml_tensor;

namespace mikv {

// True while this thread watches: the caller then does nothing. data: where the bytes come from or go to; null: nowhere.
bool note_transfer(const ggml_tensor * tensor, const void * data, size_t offset, size_t size);
bool is_watching();

} // namespace mikv
