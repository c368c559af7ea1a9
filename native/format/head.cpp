#include "format/head.h"

namespace mikv {

namespace {

constexpr size_t alignment = 64;

size_t padded(size_t size_bytes) { return (size_bytes + alignment - 1) / alignment * alignment; }

size_t params_bytes(const HeadLayout & l, const RowFormat & row) {
    return sizeof(uint16_t) * row.n_groups() * size_t(l.n_cells);
}

} // namespace

size_t HeadLayout::base_bytes() const {
    if (!has_base()) {
        return 0;
    }
    return padded(params_bytes(*this, k)) + padded(size_t(n_cells) * k.base_bytes()) + padded(params_bytes(*this, v)) +
           padded(size_t(n_cells) * v.base_bytes());
}

size_t HeadLayout::refined_bytes() const {
    return padded(size_t(n_slots) * k.refinement_bytes()) + padded(size_t(n_slots) * v.refinement_bytes()) +
           padded(sizeof(uint16_t) * n_halves() * k.dim) + padded(sizeof(uint16_t) * n_halves() * v.dim);
}

size_t HeadLayout::metadata_bytes() const {
    const size_t n_rows = pooled ? size_t(n_cells) : 0;
    return padded(sizeof(uint16_t) * n_blocks() * size_t(k.dim)) + padded(sizeof(uint32_t) * n_maps()) +
           padded(sizeof(float) * n_maps()) + padded(sizeof(uint32_t) * n_exact) + padded(sizeof(uint32_t) * n_rows) +
           padded(sizeof(float) * n_rows);
}

HeadView view_head(const HeadLayout & l, uint8_t * memory) {
    uint8_t * at   = memory;
    auto      take = [&at](size_t size_bytes) {
        uint8_t * here = at;
        at += padded(size_bytes);
        return here;
    };
    const size_t n_base = l.has_base() ? size_t(l.n_cells) : 0, n_rows = l.pooled ? size_t(l.n_cells) : 0;
    HeadView     h;
    static_cast<HeadShape &>(h) = l;
    h.k_params                  = reinterpret_cast<uint16_t *>(take(sizeof(uint16_t) * l.k.n_groups() * n_base));
    h.k_base                    = take(n_base * l.k.base_bytes());
    h.v_params                  = reinterpret_cast<uint16_t *>(take(sizeof(uint16_t) * l.v.n_groups() * n_base));
    h.v_base                    = take(n_base * l.v.base_bytes());
    h.k_mean                    = reinterpret_cast<uint16_t *>(take(sizeof(uint16_t) * l.n_blocks() * size_t(l.k.dim)));
    h.k_refined                 = take(size_t(l.n_slots) * l.k.refinement_bytes());
    h.v_refined                 = take(size_t(l.n_slots) * l.v.refinement_bytes());
    h.slot_cell                 = reinterpret_cast<uint32_t *>(take(sizeof(uint32_t) * l.n_maps()));
    h.slot_mass                 = reinterpret_cast<float *>(take(sizeof(float) * l.n_maps()));
    h.k_exact                   = reinterpret_cast<uint16_t *>(take(sizeof(uint16_t) * l.n_halves() * l.k.dim));
    h.v_exact                   = reinterpret_cast<uint16_t *>(take(sizeof(uint16_t) * l.n_halves() * l.v.dim));
    h.exact_cell                = reinterpret_cast<uint32_t *>(take(sizeof(uint32_t) * l.n_exact));
    h.row_cell                  = reinterpret_cast<uint32_t *>(take(sizeof(uint32_t) * n_rows));
    h.row_mass                  = reinterpret_cast<float *>(take(sizeof(float) * n_rows));
    return h;
}

} // namespace mikv
