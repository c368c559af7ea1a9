// What is known of the cells of one stream, shared by all layers and heads: when each was stored, when a query last saw it, which are sinks
// or recent, and which row of the micro-batch waits in which cell. llama.cpp announces none of this: it is read off the mask.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "format/cell.h"

namespace mikv {

// One stream's part of a micro-batch, as far as the mask tells. Cells are numbered within the stream.
struct CellBatch {
    const int64_t *  cells; // [n_tokens], within the stream after first_cell is subtracted
    int64_t          first_cell;
    const uint16_t * mask; // f16, null: everything is visible
    int64_t          mask_stride;
    int              n_tokens;
    int              n_kv;
};

// A table's contents, as a device has them: arrays [n_cells].
struct CellImage {
    const uint32_t * born;
    const uint32_t * seen;
    const uint8_t *  flags;
    const int32_t *  staged;
    uint32_t         now, batch;
};

class CellTable {
public:
    explicit CellTable(int n_cells);

    // Registers a micro-batch's tokens. sinks: the first so many tokens of a sequence are sinks; window: the last so many are recent.
    void begin(const CellBatch & batch, int sinks, int window);
    // A row arrived from outside (state load): the cell holds a token from now on.
    void      hold(int cell, int sinks);
    void      clear();
    CellImage image() const { return {born_.data(), seen_.data(), flags_.data(), staged_.data(), now_, batch_}; }
    void      restore(const CellImage & image);

    // What is noted of a cell, as it goes to a state file and comes back.
    struct Note {
        uint32_t born, seen;
        uint8_t  flags;
    };
    Note     note(int cell) const { return {born_[cell], seen_[cell], uint8_t(flags_[cell] & ~cell_loading)}; }
    uint32_t batches() const { return batch_; }
    void     restore(int cell, const Note & note); // of an empty table, before restore_clock
    void     restore_clock(uint32_t now, uint32_t batches);

    int  size() const { return int(born_.size()); }
    bool holds(int cell) const { return flags_[cell] & cell_holds; }
    bool is_sink(int cell) const { return flags_[cell] & cell_sink; }
    bool is_recent(int cell) const { return flags_[cell] & cell_recent; }
    bool is_loading(int cell) const { return flags_[cell] & cell_loading; } // came by hold(), and no micro-batch since
    bool is_guarded(int cell) const { return flags_[cell] & (cell_sink | cell_recent); }
    // No query has seen the cell for a while: removed, or of a sequence that sleeps.
    bool     is_forgotten(int cell) const { return batch_ - seen_[cell] > forgotten_after; }
    uint32_t born(int cell) const { return born_[cell]; }
    uint32_t now() const { return now_; }
    int      n_held() const { return n_held_; }
    int      end() const; // one past the highest cell that holds a token

    const int32_t * staged() const { return staged_.data(); } // [n_cells]: row of the micro-batch, or -1
    static size_t   bytes(size_t n_cells, size_t n_waiting);  // n_waiting: tokens of a micro-batch
    size_t          size_bytes() const { return bytes(born_.size(), waiting_.capacity()); }

private:
    void take(int cell, bool sink);
    void mark_seen(const CellBatch & batch);
    void mark_recent(const CellBatch & batch, int token, int window);
    // How many cells that the token sees were stored at or after `oldest`.
    int      count_since(const CellBatch & batch, int token, uint32_t oldest) const;
    uint32_t oldest_recent(const CellBatch & batch, int token, int window) const;

    std::vector<uint32_t> born_;
    std::vector<uint32_t> seen_;
    std::vector<uint8_t>  flags_;
    std::vector<int32_t>  staged_;
    std::vector<int>      waiting_;         // cells with staged_ >= 0
    bool                  loading_ = false; // some cell has cell_loading
    uint32_t              now_     = 0;     // tokens stored
    uint32_t              batch_   = 0;     // micro-batches
    int                   n_held_  = 0;
};

} // namespace mikv
