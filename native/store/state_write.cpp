// From a cache to bytes. state_read.cpp reads them in the same order.
#include <algorithm>
#include <cstring>

#include "format/parts.h"
#include "store/error.h"
#include "store/state.h"
#include "store/state_bytes.h"
#include "store/state_head.h"

namespace mikv {

namespace {

constexpr uint32_t nowhere = free_slot;

// What is taken along of one stream: its cells, and where each of them stands among these.
struct Chosen {
    std::vector<uint32_t> cells;
    std::vector<uint32_t> position; // [n_cells]
};

std::vector<Chosen> chosen_cells(const mikv_shape & shape, const CellList & cells) {
    std::vector<Chosen> streams(static_cast<size_t>(shape.n_stream));
    for (Chosen & stream : streams) {
        stream.position.resize(size_t(shape.n_cells), nowhere);
    }
    for (int64_t cell : cells) {
        Chosen &       stream      = streams[size_t(cell / shape.n_cells)];
        const uint32_t in_stream   = uint32_t(cell % shape.n_cells);
        stream.position[in_stream] = uint32_t(stream.cells.size());
        stream.cells.push_back(in_stream);
    }
    return streams;
}

void write_cells(StateWriter & out, const CellTable & table, const Chosen & stream) {
    std::vector<uint32_t> born, seen;
    std::vector<uint8_t>  flags;
    for (uint32_t cell : stream.cells) {
        const CellTable::Note note = table.note(int(cell));
        born.push_back(note.born);
        seen.push_back(note.seen);
        flags.push_back(note.flags);
    }
    out.number(table.now());
    out.number(table.batches());
    out.numbers(stream.cells);
    out.numbers(born);
    out.numbers(seen);
    out.numbers(flags);
}

void write_elements(StateWriter & out, const HeadView & h, PartOf of, const std::vector<uint32_t> & which) {
    for (const Part & part : parts_of(h)) {
        for (int plane = 0; part.of == of && part.n > 0 && plane < part.n_planes; plane++) {
            for (uint32_t i : which) {
                out.bytes(part.at(plane, i), part.element_bytes);
            }
        }
    }
}

// Of a free list, what does not follow from the rest being taken in order.
std::vector<uint32_t> free_ahead(const Head & head, Held what) {
    std::vector<uint32_t> order = free_list(head, what);
    uint32_t              next  = uint32_t(what == Held::rows ? head.view.n_cells : head.view.n_slots);
    while (!order.empty() && order.back() == next - 1) {
        order.pop_back();
        next--;
    }
    return order;
}

// Whose each slot, exact row or row of a pool is, up to the last one that is taken along, and its mass, if it has one. Returns those taken along.
std::vector<uint32_t> write_owners(StateWriter & out, const uint32_t * owner_of, const float * mass_of, int n,
                                   const std::vector<uint32_t> & position) {
    std::vector<uint32_t> taken, owners;
    std::vector<float>    mass;
    for (int i = 0; i < n; i++) {
        const uint32_t owner = owner_of[i] < position.size() ? position[owner_of[i]] : nowhere;
        if (owner != nowhere) {
            owners.resize(size_t(i), nowhere);
            owners.push_back(owner);
            mass.resize(size_t(i), 0.0f);
            mass.push_back(mass_of ? mass_of[i] : 0.0f);
            taken.push_back(uint32_t(i));
        }
    }
    out.numbers(owners);
    if (mass_of) {
        out.bytes(mass.data(), mass.size() * sizeof(float));
    }
    return taken;
}

// Rows that belong to the chosen cells: their numbers, and where each row stands among them.
std::vector<uint32_t> write_rows(StateWriter & out, const HeadView & h, const Chosen & stream,
                                 std::vector<uint32_t> & position) {
    if (!h.pooled) {
        position = stream.position;
        write_elements(out, h, PartOf::row, stream.cells);
        return stream.cells;
    }
    const std::vector<uint32_t> rows = write_owners(out, h.row_cell, h.row_mass, h.n_cells, stream.position);
    write_elements(out, h, PartOf::row, rows);
    position.resize(size_t(h.n_cells), nowhere);
    for (size_t i = 0; i < rows.size(); i++) {
        position[rows[i]] = uint32_t(i);
    }
    return rows;
}

void write_refined(StateWriter & out, const HeadView & h, const std::vector<uint32_t> & rows,
                   const std::vector<uint32_t> & position) {
    const std::vector<uint32_t> slots = write_owners(out, h.slot_cell, h.slot_mass, h.n_maps(), position);
    write_elements(out, h, PartOf::slot, h.whole() ? rows : slots);
}

void write_means(StateWriter & out, const Head & head) {
    std::vector<uint32_t> blocks;
    for (int block = 0; block < head.view.n_blocks(); block++) {
        if (head.has_mean[block]) {
            blocks.push_back(uint32_t(block));
        }
    }
    out.numbers(blocks);
    write_elements(out, head.view, PartOf::block, blocks);
}

void write_head(StateWriter & out, const Head & head, int balancer_dim, const Chosen & stream) {
    const HeadView &  h = head.view;
    const HeadState & s = head.state;
    out.bytes(&static_cast<const HeadShape &>(h), sizeof(HeadShape));
    out.number(s.demotions);
    for (double mass : s.mass) {
        out.number(mass);
    }
    out.number(s.mean_count);
    out.number(s.n_queries);
    out.number(uint8_t(s.settled));
    out.number(uint8_t(s.balanced));
    out.numbers(std::vector<float>(head.mean_sum, head.mean_sum + h.k.dim));
    out.numbers(std::vector<float>(head.query_sums, head.query_sums + (head.query_sums ? 2 * h.k.dim : 0)));
    out.numbers(std::vector<uint16_t>(head.balancer, head.balancer + (s.balanced ? balancer_dim : 0)));
    std::vector<uint32_t>       position;
    const std::vector<uint32_t> rows = write_rows(out, h, stream, position);
    write_refined(out, h, rows, position);
    write_elements(out, h, PartOf::exact, write_owners(out, h.exact_cell, nullptr, h.n_exact, position));
    write_means(out, head);
    out.numbers(free_ahead(head, Held::slots));
    out.numbers(free_ahead(head, Held::rows));
}

} // namespace

mikv_status write_state(Cache & cache, const CellList & cells, std::vector<uint8_t> * out) {
    const mikv_shape & shape = cache.shape();
    int64_t            last  = -1;
    for (int64_t cell : cells) {
        if (cell <= last || cell >= int64_t(shape.n_cells) * shape.n_stream) {
            return fail(MIKV_ERROR_ARGUMENT, "cell %lld of a state: give cells of this cache in ascending order",
                        (long long)cell);
        }
        last = cell;
    }
    const std::vector<Chosen> streams = chosen_cells(shape, cells);
    StateWriter               to(*out);
    to.number(state_version);
    to.number(uint32_t(sizeof(HeadShape)));
    for (int32_t size : {shape.n_layer, shape.n_head_kv, shape.n_stream, shape.head_dim_k, shape.head_dim_v}) {
        to.number(size);
    }
    for (int index = 0; index < shape.n_layer; index++) {
        to.number(int32_t(cache.layer_number(index)));
    }
    to.number(int32_t(cache.config().rotate));
    to.number(int32_t(cache.config().center_keys));
    to.number(int32_t(cache.config().balance));
    char policy[MIKV_POLICY_NAME_SIZE] = {0}; // what stands behind a name may be anything
    std::copy_n(cache.config().policy, std::strlen(cache.config().policy), policy);
    to.bytes(policy, sizeof(policy));
    for (int stream = 0; stream < shape.n_stream; stream++) {
        write_cells(to, cache.cells(stream), streams[size_t(stream)]);
    }
    const int balancer_dim = balancer_size(Balance(cache.config().balance), shape.head_dim_k);
    for (int index = 0; index < shape.n_layer; index++) {
        for (int stream = 0; stream < shape.n_stream; stream++) {
            for (int h = 0; h < shape.n_head_kv; h++) {
                write_head(to, cache.head(index, stream, h), balancer_dim, streams[size_t(stream)]);
            }
        }
    }
    return MIKV_OK;
}

} // namespace mikv
