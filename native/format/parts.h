// The arrays of a KV head, one after the other, for those who carry all of them somewhere: state files. A new array is a row in parts.cpp.
#pragma once

#include <vector>

#include "format/head.h"

namespace mikv {

// What an element of an array belongs to.
enum class PartOf {
    row,   // a row of the base
    block, // a block of rows
    slot,  // a refined row
    exact, // a row kept in f16 for a sink
    map    // says whose a slot, an exact row or a row of a pool is, or what it scored
};

// [n_planes][n][element_bytes] at data.
struct Part {
    PartOf    of;
    uint8_t * data;
    size_t    element_bytes;
    int       n;
    int       n_planes;

    uint8_t * at(int plane, uint32_t i) const { return data + (size_t(plane) * size_t(n) + i) * element_bytes; }
};

// Pointers are the view's: valid as long as its memory.
std::vector<Part> parts_of(const HeadView & head);

// Bytes that one row, block, slot or exact row takes in all of its arrays.
size_t part_bytes(const HeadView & head, PartOf of);

// Whether rows of this format can be decoded: what a stranger wrote may say anything.
bool is_row_format(const RowFormat & row);

} // namespace mikv
