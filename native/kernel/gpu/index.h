// index: the place of each cell's row (CellIndex::place), from the slots' owners.
#pragma once

#include "kernel/gpu/block.h"

namespace mikv {

// A thread a cell.
MIKV_DEVICE_FN void index_clear_block(MIKV_ARGUMENTS LayerArgs & a, WorkPlace at, MIKV_SHARED NothingShared *) {
    const int32_t cell = int32_t(at.x) * index_threads + int32_t(at.tid);
    if (cell < a.n_kv) {
        a.place[int64_t(at.y) * a.n_kv + cell] = gpu_place_base;
    }
}

// A thread some slots.
MIKV_DEVICE_FN void index_place_block(MIKV_ARGUMENTS LayerArgs & a, WorkPlace at, MIKV_SHARED NothingShared *) {
    const MIKV_GLOBAL GpuHead * h     = a.heads + at.y;
    MIKV_GLOBAL int32_t *       place = a.place + int64_t(at.y) * a.n_kv;
    const int32_t               first = int32_t(at.x) * index_threads + int32_t(at.tid);
    for (int32_t slot = first; slot < h->view.n_slots; slot += index_blocks * index_threads) {
        const uint32_t cell = h->view.slot_cell[slot];
        if (cell < uint32_t(a.n_kv)) {
            place[cell] = slot;
        }
    }
    for (int32_t e = first; e < h->view.n_exact; e += index_blocks * index_threads) {
        const uint32_t cell = h->view.exact_cell[e];
        if (cell < uint32_t(a.n_kv)) {
            place[cell] = -2 - e;
        }
    }
}

} // namespace mikv
