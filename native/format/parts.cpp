#include "format/parts.h"

namespace mikv {

namespace {

template <typename T> uint8_t * bytes(T * data) { return reinterpret_cast<uint8_t *>(data); }

} // namespace

std::vector<Part> parts_of(const HeadView & h) {
    const int n_base = h.has_base() ? h.n_cells : 0, n_rows = h.pooled ? h.n_cells : 0,
              n_halves  = h.exact_slots ? h.n_slots : 0;
    const size_t k_half = sizeof(uint16_t) * size_t(h.k.dim), v_half = sizeof(uint16_t) * size_t(h.v.dim);
    return {
        {PartOf::row, bytes(h.k_params), sizeof(uint16_t), n_base, h.k.n_groups()},
        {PartOf::row, h.k_base, size_t(h.k.base_bytes()), n_base, 1},
        {PartOf::row, bytes(h.v_params), sizeof(uint16_t), n_base, h.v.n_groups()},
        {PartOf::row, h.v_base, size_t(h.v.base_bytes()), n_base, 1},
        {PartOf::block, bytes(h.k_mean), k_half, h.n_blocks(), 1},
        {PartOf::slot, h.k_refined, size_t(h.k.refinement_bytes()), h.n_slots, 1},
        {PartOf::slot, h.v_refined, size_t(h.v.refinement_bytes()), h.n_slots, 1},
        {PartOf::map, bytes(h.slot_cell), sizeof(uint32_t), h.n_maps(), 1},
        {PartOf::map, bytes(h.slot_mass), sizeof(float), h.n_maps(), 1},
        {PartOf::exact, bytes(h.k_exact), k_half, h.n_exact, 1},
        {PartOf::slot, bytes(h.k_exact) + k_half * size_t(h.n_exact), k_half, n_halves, 1},
        {PartOf::exact, bytes(h.v_exact), v_half, h.n_exact, 1},
        {PartOf::slot, bytes(h.v_exact) + v_half * size_t(h.n_exact), v_half, n_halves, 1},
        {PartOf::map, bytes(h.exact_cell), sizeof(uint32_t), h.n_exact, 1},
        {PartOf::map, bytes(h.row_cell), sizeof(uint32_t), n_rows, 1},
        {PartOf::map, bytes(h.row_mass), sizeof(float), n_rows, 1},
    };
}

size_t part_bytes(const HeadView & head, PartOf of) {
    size_t size_bytes = 0;
    for (const Part & part : parts_of(head)) {
        size_bytes += part.of == of && part.n > 0 ? part.element_bytes * size_t(part.n_planes) : 0;
    }
    return size_bytes;
}

bool is_row_format(const RowFormat & row) {
    const auto is_base     = [](int bits) { return bits >= 2 && bits <= 4; };
    const auto is_refined  = [](int bits) { return bits >= 2 && bits <= 8 && bits != 7; };
    const bool nothing     = row.bits == 0 && row.n_lead > 0; // but for the leading groups
    const bool leads       = row.n_lead == 0 ? row.lead_bits == 0 : is_base(row.lead_bits);
    const bool has_refined = is_refined(row.refined_bits) || (nothing && row.refined_bits == 0);
    return (row.group == 32 || row.group == 64) && row.dim >= row.group && row.dim <= 65536 && row.dim % row.group == 0 &&
           (nothing || is_base(row.bits)) && has_refined && row.refined_bits >= row.bits && leads && row.n_lead >= 0 &&
           row.n_lead <= row.dim / row.group && (row.end_points == 0 || row.end_points == 1);
}

} // namespace mikv
