// What code compiled with -fsanitize=thread calls at each access to memory. The sanitizer's own library is not linked.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mikv {
void note_access(const void * address, size_t size_bytes, bool write, void * code);
}

#define MIKV_ANNOUNCE(name, size, write)                                                                                       \
    void name(void * address) { mikv::note_access(address, size, write, __builtin_return_address(0)); }
#define MIKV_ANNOUNCE_SIZE(size)                                                                                               \
    MIKV_ANNOUNCE(__tsan_read##size, size, false)                                                                              \
    MIKV_ANNOUNCE(__tsan_write##size, size, true)                                                                              \
    MIKV_ANNOUNCE(__tsan_unaligned_read##size, size, false)                                                                    \
    MIKV_ANNOUNCE(__tsan_unaligned_write##size, size, true)

extern "C" {

MIKV_ANNOUNCE_SIZE(1)
MIKV_ANNOUNCE_SIZE(2)
MIKV_ANNOUNCE_SIZE(4)
MIKV_ANNOUNCE_SIZE(8)
MIKV_ANNOUNCE_SIZE(16)

// Clang's names for copies.
void * __tsan_memcpy(void * to, const void * from, size_t size) {
    mikv::note_access(from, size, false, __builtin_return_address(0));
    mikv::note_access(to, size, true, __builtin_return_address(0));
    return std::memcpy(to, from, size);
}
void * __tsan_memset(void * to, int value, size_t size) {
    mikv::note_access(to, size, true, __builtin_return_address(0));
    return std::memset(to, value, size);
}
void __tsan_read_range(void * address, size_t size) { mikv::note_access(address, size, false, __builtin_return_address(0)); }
void __tsan_write_range(void * address, size_t size) { mikv::note_access(address, size, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
