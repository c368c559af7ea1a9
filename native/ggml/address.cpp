#include "ggml/address.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace mikv {

#ifdef _WIN32

void * reserve_addresses(size_t size_bytes) { return VirtualAlloc(nullptr, size_bytes, MEM_RESERVE, PAGE_NOACCESS); }

void release_addresses(void * base, size_t) {
    if (base) {
        VirtualFree(base, 0, MEM_RELEASE);
    }
}

#else

void * reserve_addresses(size_t size_bytes) {
#ifdef MAP_NORESERVE
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#else
    const int flags = MAP_PRIVATE | MAP_ANON;
#endif
    void * base = mmap(nullptr, size_bytes, PROT_NONE, flags, -1, 0);
    return base == MAP_FAILED ? nullptr : base;
}

void release_addresses(void * base, size_t size_bytes) {
    if (base) {
        munmap(base, size_bytes);
    }
}

#endif

} // namespace mikv
