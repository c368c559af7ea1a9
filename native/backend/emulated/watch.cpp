#include "backend/emulated/watch.h"

#include <cstdio>
#include <cstring>

#include <dlfcn.h>

namespace mikv {

bool Moment::is_concurrent(const Moment & other) const {
    if (launch == 0 || launch != other.launch) {
        return false;
    }
    if (block != other.block) {
        return true;
    }
    if (thread == other.thread || block_syncs != other.block_syncs) {
        return false;
    }
    return thread / 32 != other.thread / 32 || warp_syncs == other.warp_syncs;
}

void Watch::allow(const void * memory, size_t size_bytes, const char * name, bool writable) {
    const auto first = reinterpret_cast<uintptr_t>(memory);
    ranges_[first]   = {first + size_bytes, name, writable, {}};
}

void Watch::forget(const void * memory) { ranges_.erase(reinterpret_cast<uintptr_t>(memory)); }

void Watch::forget(const void * memory, size_t size_bytes) {
    const auto first = reinterpret_cast<uintptr_t>(memory);
    ranges_.erase(ranges_.lower_bound(first), ranges_.lower_bound(first + size_bytes));
}

std::string Watch::conflict(Byte & byte, bool write, const Moment & moment) {
    const Moment * other = byte.written.is_concurrent(moment) ? &byte.written : nullptr;
    for (const Moment & read : byte.read) {
        other = write && read.is_concurrent(moment) ? &read : other;
    }
    if (write) {
        byte.written = moment;
    } else if (byte.read[0].thread == moment.thread && byte.read[0].block == moment.block) {
        byte.read[0] = moment;
    } else {
        byte.read[1] = byte.read[0];
        byte.read[0] = moment;
    }
    if (!other) {
        return "";
    }
    return "race: thread " + std::to_string(moment.thread) + " of block " + std::to_string(moment.block) +
           (write ? " writes" : " reads") + " what thread " + std::to_string(other->thread) + " of block " +
           std::to_string(other->block) + (other == &byte.written ? " wrote" : " read") + " at " +
           place_in_source(other->code) + ", with no barrier between";
}

std::string Watch::check(const void * address, size_t size_bytes, bool write, const Moment & moment) {
    const auto first = reinterpret_cast<uintptr_t>(address);
    auto       at    = ranges_.upper_bound(first);
    if (at != ranges_.begin()) {
        --at;
    }
    if (at == ranges_.end() || first < at->first || first + size_bytes > at->second.end) {
        std::string text =
            std::string("out of bounds: ") + (write ? "write of " : "read of ") + std::to_string(size_bytes) + " bytes";
        if (at != ranges_.end() && first >= at->first) {
            text += " at byte " + std::to_string(first - at->first) + " of " + at->second.name + ", which has " +
                    std::to_string(at->second.end - at->first);
        }
        return text;
    }
    Range & range = at->second;
    if (write && !range.writable) {
        return "write to " + range.name + ", which is only read";
    }
    if (range.writable) {
        range.bytes.resize(range.end - at->first);
    }
    for (size_t i = 0; range.writable && i < size_bytes; i++) {
        std::string text = conflict(range.bytes[first - at->first + i], write, moment);
        if (!text.empty()) {
            return text + " (byte " + std::to_string(first - at->first + i) + " of " + range.name + ")";
        }
    }
    return "";
}

std::string place_in_source(const void * code) {
    Dl_info info;
    if (!code || !dladdr(code, &info) || !info.dli_fname) {
        return "";
    }
    char command[1024], line[1024] = "";
    std::snprintf(command, sizeof(command), "addr2line -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                  size_t(static_cast<const char *>(code) - static_cast<const char *>(info.dli_fbase)) - 1);
    if (FILE * pipe = popen(command, "r")) {
        if (!std::fgets(line, sizeof(line), pipe)) {
            line[0] = 0;
        }
        pclose(pipe);
    }
    line[std::strcspn(line, " \n")] = 0;
    const char * slash              = std::strrchr(line, '/');
    return slash ? slash + 1 : line;
}

} // namespace mikv
