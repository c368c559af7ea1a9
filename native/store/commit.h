// The end of a micro-batch for one KV head: scores updated, tiers chosen, rows quantized once, straight into their tier.
#pragma once

#include "store/cache.h"

namespace mikv {

struct Commit {
    int           index; // layer
    int           stream;
    int           head;
    const int *   cells; // [n]: where the rows go
    int           n;
    const float * k; // row i at k + i * k_stride
    const float * v;
    int64_t       k_stride;
    int64_t       v_stride;
    int32_t *     place;   // [n_place] as by Cache::index_cells; kept current
    int           n_place; // above every cell of the batch
    const float * mass;    // [n_mass] attention mass that fell on each cell in this micro-batch, or null: not measured
    int           n_mass;
    float         mass_scale;     // what it counts, measured on a sample of the queries
    const float * most = nullptr; // [n_mass] the most that one query gave each cell, or null: the policy does not read it
};

void commit_rows(Cache & cache, const Commit & commit);

// One row into the place that it has (CellIndex::place). centred: room for k.dim floats.
void store_key(const HeadView & head, int cell, int32_t place, const float * key, float * centred);
void store_value(const HeadView & head, int cell, int32_t place, const float * value);

} // namespace mikv
