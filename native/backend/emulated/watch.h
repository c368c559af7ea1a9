// Every access that a kernel makes to memory, watched: outside of what it was given, or not ordered with another thread's.
//
// A kernel's file is compiled with -fsanitize=thread, by which the compiler announces each access; instead of the sanitizer's library, watch.cpp
// hears of them. The kernel's text knows nothing of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mikv {

// Who accesses, and when: accesses of two threads of a block are ordered by a barrier between them, of two threads of a warp also by a
// warp's; accesses of two blocks are never ordered. (Shuffles order nothing: CUDA promises nothing of the kind.)
struct Moment {
    uint32_t launch = 0; // 0: never
    uint32_t block = 0, thread = 0;
    uint32_t block_syncs = 0, warp_syncs = 0;
    void *   code = nullptr; // where in the program

    bool is_concurrent(const Moment & other) const;
};

class Watch {
public:
    // Memory that kernels may read and, if writable, write. Kept until forgotten; arrays may lie next to each other, but not overlap.
    void allow(const void * memory, size_t size_bytes, const char * name, bool writable);
    void forget(const void * memory);                    // as it was allowed
    void forget(const void * memory, size_t size_bytes); // everything that begins in there
    void forget_all() { ranges_.clear(); }

    // An access; "" or what is wrong with it.
    std::string check(const void * address, size_t size_bytes, bool write, const Moment & moment);

private:
    struct Byte {
        Moment written, read[2]; // the last write, the last reads by two threads
    };
    struct Range {
        uintptr_t         end;
        std::string       name;
        bool              writable;
        std::vector<Byte> bytes; // made at the first access
    };
    static std::string conflict(Byte & byte, bool write, const Moment & moment);

    std::map<uintptr_t, Range> ranges_; // by first address
};

// "file.h:12" of a place in this program, by addr2line; "" if it cannot tell.
std::string place_in_source(const void * code);

} // namespace mikv
