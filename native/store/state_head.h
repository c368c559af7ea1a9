// One KV head as a state has it, checked, and the two ways into a cache.
#pragma once

#include "format/parts.h"
#include "store/cache.h"

namespace mikv {

// Cells of one stream, as saved.
struct SavedStream {
    uint32_t                     now = 0, batches = 0;
    std::vector<uint32_t>        cells; // ascending
    std::vector<CellTable::Note> notes; // of each
};

// Pointers are into the state's bytes: elements of all arrays of a kind, array after array (parts.h).
struct SavedHead {
    HeadShape             shape;
    HeadState             state; // what counts nothing and lists nothing
    std::vector<float>    mean_sum, query_sums;
    std::vector<uint16_t> balancer;
    std::vector<uint32_t> rows;   // numbers, ascending
    std::vector<uint32_t> owners; // of rows: which of the stream's cells
    std::vector<float>    row_mass;
    std::vector<uint32_t> slots, slot_rows; // slot_rows: which of `rows`; both empty where the pool is whole
    std::vector<float>    slot_mass;
    std::vector<uint32_t> exact, exact_rows;
    std::vector<uint32_t> blocks;
    std::vector<uint32_t> free_slots, free_rows; // taken first
    const uint8_t *       row_bytes   = nullptr;
    const uint8_t *       slot_bytes  = nullptr;
    const uint8_t *       exact_bytes = nullptr;
    const uint8_t *       block_bytes = nullptr;

    size_t n_refined() const { return shape.whole() ? rows.size() : slots.size(); }
};

// Where a head comes from and goes to.
struct Restored {
    const SavedStream &           stream;
    const std::vector<uint32_t> & cells;                         // where each of the stream's cells goes, ascending
    bool                          rotated, centred, same_policy; // as saved; same_policy: scores mean the same there and here
    Balance                       balance;                       // as saved
};

constexpr uint32_t dropped = free_slot; // of no use to the cache that reads

// A view for sizes alone: its pointers are nowhere.
HeadView sizes_of(const HeadShape & shape);
// The elements of all arrays of a kind, n of each array at `from`, to elements `to[i]` of a head of equal codec.
void spread_elements(const HeadShape & saved, const uint8_t * from, PartOf of, const HeadView & head,
                     const std::vector<uint32_t> & to);

// Whether the saved bytes can lie in `to` as they are.
bool can_copy(const SavedHead & saved, const Restored & from, const Cache & cache, const Head & to);
// Into an empty head.
void        copy_head(const SavedHead & saved, const Restored & from, Head & to);
mikv_status convert_head(const SavedHead & saved, const Restored & from, Cache & cache, int stream, Head & to);

} // namespace mikv
