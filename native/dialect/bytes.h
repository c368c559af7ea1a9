// Arithmetic on the bytes of words, for compilers of GPU code that have no words of their own for it: the definition of those that have.
#pragma once

namespace mikv {

// Four bytes of a and b by number, the lowest hexadecimal digit of `which` first: 0 .. 3 of a, 4 .. 7 of b.
MIKV_DEVICE_FN uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) {
    uint32_t word = 0;
    for (uint32_t i = 0; i < 32; i += 8) {
        const uint32_t digit = which >> (i / 2) & 7u;
        word |= ((digit < 4 ? a : b) >> (digit % 4 * 8) & 255u) << i;
    }
    return word;
}

// sum + the products of four bytes without a sign and four with one.
MIKV_DEVICE_FN int32_t dot4(uint32_t codes, uint32_t factors, int32_t sum) {
    for (uint32_t i = 0; i < 32; i += 8) {
        sum += int32_t(codes >> i & 255u) * (int32_t(factors << (24 - i)) >> 24);
    }
    return sum;
}

// One lane's part of a warp's product of bytes, c [16][8] += a [16][32] * b [32][8]: a without signs, b with. Of a lane l holds rows
// l / 4 (words 0, 2) and l / 4 + 8 (1, 3), of each the columns 4 * (l % 4) .. + 3 (0, 1) and those 16 further (2, 3); of b, words 4 and 5,
// column l / 4 and rows likewise; of c rows l / 4 (0, 1) and l / 4 + 8 (2, 3), columns 2 * (l % 4) and the next. lanes.word(l, i): word i of l.
template <class Lanes> MIKV_DEVICE_FN void add_products_of(Lanes lanes, uint32_t lane, MIKV_LOCAL int32_t * c) {
    for (uint32_t t = 0; t < 4; t++) {
        const uint32_t row = lane / 4 * 4 + t, column = lane % 4 * 8 + t;
        for (int part = 0; part < 2; part++) {
            const uint32_t upper = lanes.word(row, 2 * part), lower = lanes.word(row, 2 * part + 1);
            const uint32_t left = lanes.word(column, 4 + part), right = lanes.word(column + 4, 4 + part);
            c[0] = dot4(upper, left, c[0]);
            c[1] = dot4(upper, right, c[1]);
            c[2] = dot4(lower, left, c[2]);
            c[3] = dot4(lower, right, c[3]);
        }
    }
}

} // namespace mikv
