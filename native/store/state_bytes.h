// Numbers to bytes, little end first, and back.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace mikv {

class StateWriter {
public:
    explicit StateWriter(std::vector<uint8_t> & out) : out_(out) {}

    void bytes(const void * data, size_t n) {
        const uint8_t * from = static_cast<const uint8_t *>(data);
        out_.insert(out_.end(), from, from + n);
    }
    template <typename T> void number(T value) {
        static_assert(std::is_arithmetic<T>::value, "structs have padding");
        bytes(&value, sizeof(T));
    }
    template <typename T> void numbers(const std::vector<T> & values) {
        number(uint32_t(values.size()));
        bytes(values.data(), values.size() * sizeof(T));
    }

private:
    std::vector<uint8_t> & out_;
};

// Reads what a stranger wrote: past the end everything is 0 or empty, and good() says so.
class StateReader {
public:
    StateReader(const uint8_t * data, size_t n) : at_(data), left_(n) {}

    bool   good() const { return good_; }
    bool   at_end() const { return good_ && left_ == 0; }
    size_t left() const { return left_; }

    const uint8_t * bytes(size_t n) { // null: there are not so many
        if (n > left_ || !good_) {
            good_ = false;
            return nullptr;
        }
        const uint8_t * here = at_;
        at_ += n;
        left_ -= n;
        return here;
    }
    template <typename T> T number() {
        T               value{};
        const uint8_t * from = bytes(sizeof(T));
        if (from) {
            std::memcpy(&value, from, sizeof(T));
        }
        return value;
    }
    template <typename T> std::vector<T> numbers() {
        const uint32_t  n    = number<uint32_t>();
        const uint8_t * from = bytes(size_t(n) * sizeof(T));
        std::vector<T>  values(from ? n : 0);
        if (from && n > 0) {
            std::memcpy(values.data(), from, size_t(n) * sizeof(T));
        }
        return values;
    }

private:
    const uint8_t * at_;
    size_t          left_;
    bool            good_ = true;
};

} // namespace mikv
