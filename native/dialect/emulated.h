// The dialect's words for the emulator of GPU execution (backend/emulated/), which defines the collectives declared here. They note where they
// are called: all threads of a block, or of a warp, must meet at the same place.
#pragma once

#define MIKV_DEVICE_FN static inline
#define MIKV_UNROLL

#include "dialect/bytes.h"

namespace mikv {

struct WorkPlace {
    uint32_t x, y, z; // block
    uint32_t tid;     // in it
};

constexpr uint32_t warp_size = 32;

void block_sync(const char * file = __builtin_FILE(), int line = __builtin_LINE());
void warp_sync(const char * file = __builtin_FILE(), int line = __builtin_LINE());

// The 32 bits that the thread of the same warp whose number differs in the bits of `mask` gave.
uint32_t warp_exchange(uint32_t bits, uint32_t mask, const char * file, int line);

template <class T> T warp_xor(T value, uint32_t mask, const char * file = __builtin_FILE(), int line = __builtin_LINE()) {
    static_assert(sizeof(T) == 4, "32 bits");
    return MIKV_BITCAST(T, warp_exchange(MIKV_BITCAST(uint32_t, value), mask, file, line));
}

// A warp's product of bytes, as bytes.h has it; a has 4 words, b 2. An exchange: it orders no access to memory.
void add_byte_products(uint32_t lane, int32_t * c, const uint32_t * a, const uint32_t * b, const char * file = __builtin_FILE(),
                       int line = __builtin_LINE());

// Many threads may count at once; counted at a place apart, so that the watch does not take it for a race.
void                    count_one(SharedCount * count);
MIKV_DEVICE_FN void     reset_count(SharedCount * count) { *count = 0; }
MIKV_DEVICE_FN uint32_t counted(const SharedCount * count) { return *count; }

MIKV_DEVICE_FN float exp_of(float x) { return expf(x); }
MIKV_DEVICE_FN float exp2_of(float x) { return exp2f(x); }
MIKV_DEVICE_FN float sqrt_of(float x) { return sqrtf(x); }

} // namespace mikv

// A row of a table of kernels: emulated.h of the backend has its type.
#define MIKV_KERNEL(name, Arguments, Shared, n_threads)                                                                        \
    void mikv_##name(const void * arguments, const mikv::WorkPlace & place, void * shared) {                                   \
        mikv::name##_block(*static_cast<const mikv::Arguments *>(arguments), place, static_cast<mikv::Shared *>(shared));      \
    }
