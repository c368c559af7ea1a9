// Memory that the operating system hands out page by page as it is first written: resident size grows with what is stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace mikv {

class Memory {
public:
    Memory() = default;
    ~Memory() { std::free(raw_); }
    Memory(const Memory &)             = delete;
    Memory & operator=(const Memory &) = delete;

    // Zeroed, at a multiple of 64; false: there is not so much.
    bool allocate(size_t size_bytes) {
        std::free(raw_);
        raw_        = std::calloc(size_bytes + alignment, 1);
        size_bytes_ = raw_ ? size_bytes : 0;
        return raw_ != nullptr;
    }
    // Keeps nothing of the old contents.
    bool grow(size_t size_bytes) { return size_bytes <= size_bytes_ || allocate(size_bytes); }

    uint8_t * data() const {
        return reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(raw_) + alignment - 1) / alignment * alignment);
    }
    size_t size_bytes() const { return size_bytes_; }

private:
    static constexpr size_t alignment = 64;

    void * raw_        = nullptr;
    size_t size_bytes_ = 0;
};

} // namespace mikv
