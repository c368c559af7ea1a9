// Rows of the micro-batch at work, as exact as llama.cpp's own f16 cache; all layers share the memory, one layer at a time.
#pragma once

#include "kernel/batch.h"
#include "store/memory.h"
#include "store/transform.h"

namespace mikv {

// Where a micro-batch's rows lie: row i of all heads at k + i * k_bytes.
struct RowSource {
    const char * k       = nullptr;
    const char * v       = nullptr;
    int64_t      k_bytes = 0, v_bytes = 0;
    bool         k_half = false, v_half = false; // f16; else f32
    int          k_block = 0,
        v_block     = 0; // f32 rows are still to be rotated, in blocks of so many values; 0: they are as llama.cpp stores them
    uint64_t serial = 0; // tells one layer's rows from another's
};

class Staging {
public:
    Staging(int n_head_kv, int head_dim_k, int head_dim_v) : n_head_(n_head_kv), dim_k_(head_dim_k), dim_v_(head_dim_v) {}

    static size_t bytes(int n_tokens, int n_head_kv, int head_dim_k, int head_dim_v) {
        return sizeof(uint16_t) * n_tokens * n_head_kv * size_t(head_dim_k + head_dim_v);
    }
    bool   reserve(int n_tokens); // false: no memory
    size_t size_bytes() const { return memory_.size_bytes(); }

    // One thread says so before a layer's rows come in.
    void open();
    // Row i of all heads, in floats or f16.
    void put(bool value, int i, const float * row);
    void put(bool value, int i, const uint16_t * row);
    // Rows [first, first + n) of one head in floats, as the cache will hold them, in memory of the calling thread: valid until it asks for
    // others.
    StagedRows rows(int first, int n, int head, const Transform & k, const Transform & v) const {
        return rows(own(), first, n, head, k, v);
    }
    // The same of rows that wait elsewhere, while nobody writes there.
    StagedRows      rows(const RowSource & source, int first, int n, int head, const Transform & k, const Transform & v) const;
    static uint64_t next_serial();

private:
    uint16_t * row(bool value, int i) const;
    RowSource  own() const;

    int      n_head_, dim_k_, dim_v_;
    int      n_tokens_ = 0; // room
    uint64_t serial_   = 0; // of the layer whose rows are here
    Memory   memory_;
};

} // namespace mikv
