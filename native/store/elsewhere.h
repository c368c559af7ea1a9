// Who keeps a cache's rows when its own memory does not: a GPU.
#pragma once

#include <cstdint>

namespace mikv {

constexpr int all_layers = -1, no_layer = -2;

class Elsewhere {
public:
    virtual ~Elsewhere() = default;
    // Brings what is known of heads and cells into the cache, and the rows of these layers. change: the caller changes what it brought, and the next
    // step on the device takes that back.
    virtual void bring_home(int layer, bool change) = 0;
    // The cache was emptied at home; nothing else is to be said of it.
    virtual void         emptied()              = 0;
    virtual const char * name() const           = 0; // of who it is: "CUDA"
    virtual int64_t      metadata_bytes() const = 0; // besides the heads' arrays
    virtual int64_t      scratch_bytes() const  = 0;
};

} // namespace mikv
