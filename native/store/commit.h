// The end of a micro-batch for one KV head: scores updated, tiers chosen, rows quantized once, straight into their tier.
#pragma once

#include "store/cache.h"

namespace mikv {

struct Commit {
    int           index; // layer
    int           stream;
    int           head;
    const int *   cells; // [n]: where llama.cpp put the tokens
    int           n;
    const float * k; // token i at k + i * k_stride
    const float * v;
    int64_t       k_stride;
    int64_t       v_stride;
    int32_t *     place;   // [n_place] as by Cache::index_cells; kept current
    int           n_place; // above every row that the tokens may get
    const float * mass;    // [n_mass] attention mass that fell on each row in this micro-batch, or null: not measured
    int           n_mass;
    float         mass_scale; // what it counts, measured on a sample of the queries
    const float * most =
        nullptr; // [n_mass] the most that one query gave each row, or its sum of squares; null: the policy reads neither
    const float * drawn     = nullptr; // [n] what the tokens drew themselves: of `most`, or of mass, scaled; null: not measured
    int           n_queries = 0;       // of the micro-batch; commit_rows sees to it, and to what follows
    const int *   rows      = nullptr; // [n] of the tokens, where that is decided: their cells, or rows of a pool
};

void commit_rows(Cache & cache, const Commit & commit);

// One row into the place that it has (CellIndex::place). centred: room for k.dim floats.
void store_key(const HeadView & head, int row, int32_t place, const float * key, float * centred);
void store_value(const HeadView & head, int row, int32_t place, const float * value);

} // namespace mikv
