// One attention problem: a KV head with rows in every tier, a micro-batch waiting, queries and their mask.
#pragma once

#include <string>

#include "backend/cpu/kernels.h"
#include "kernel/store.h"
#include "row_formats.h"

namespace mikv {

constexpr float canary_weight = -12345.0f; // in outputs, where nothing may be written

struct AttentionShape {
    RowFormat k, v;
    int       n_kv, first, last;
    int       n_tokens, n_head; // query heads of this KV head
    float     softcap;
    bool      alibi;
    int       seed;
};

inline std::vector<AttentionShape> attention_shapes() {
    const int                   dims[]   = {64, 128, 32, 256, 96, 192, 160};
    const int                   sizes[]  = {300, 1, 128, 33, 7, 64, 129, 500, 15};
    const int                   tokens[] = {1, 1, 2, 5, 17};
    const int                   heads[]  = {1, 3, 2, 7, 4, 9};
    std::vector<AttentionShape> shapes;
    int                         n = 0;
    for (int round = 0; round < 6; round++) {
        for (int k_bits : {2, 3, 4}) {
            for (int v_bits : {2, 3, 4}) {
                for (int refined_bits : {4, 5, 6, 8}) {
                    const int dim_k = dims[n % 7], dim_v = n % 4 ? dim_k : dims[(n / 4) % 7];
                    const int group = n % 5 == 0 || dim_k % 64 || dim_v % 64 ? 32 : 64;
                    const int n_kv = sizes[n % 9], cut = n % 3 ? 0 : n_kv / 5;
                    const int k_refined = round == 4 ? k_bits : refined_bits, v_refined = round == 5 ? v_bits : refined_bits;
                    shapes.push_back({{dim_k, group, k_bits, k_refined},
                                      {dim_v, group, v_bits, v_refined},
                                      n_kv,
                                      cut,
                                      n_kv - cut,
                                      tokens[(n / 2) % 5],
                                      heads[(n / 3) % 6],
                                      n % 11 == 5 ? 30.0f : 0.0f,
                                      n % 7 == 2,
                                      n});
                    n++;
                }
            }
        }
    }
    return shapes;
}

struct AttentionCase {
    std::string name;
    HeadView    head;
    CellIndex   index;
    StagedRows  staged;
    QueryRows   rows;
    int         n_kv, first, last;
    bool        extreme; // every code and every query at its largest, where sums of small integers could overflow

    explicit AttentionCase(const AttentionShape & shape);
    AttentionCase(const AttentionCase &) = delete;

    // The head's memory as it is.
    std::vector<uint8_t> image() const {
        const uint8_t * memory = reinterpret_cast<const uint8_t *>(head.k_params);
        return {memory, memory + HeadLayout{head.k, head.v, head.n_cells, head.n_slots, head.n_exact}.total_bytes()};
    }
    bool sees(int token, int cell) const { return mask_[size_t(token) * n_kv + cell] != 0xFC00u; }

private:
    void make_mask(const AttentionShape & shape, Random & random);
    void make_rows(Random & random);
    void make_staged(Random & random);
    void make_queries(const AttentionShape & shape, Random & random);
    bool anyone_sees(int cell) const;

    std::vector<uint8_t>  memory_;
    std::vector<int32_t>  place_, staged_row_;
    std::vector<float>    staged_k_, staged_v_, q_, slope_;
    std::vector<uint16_t> mask_;
};

inline AttentionCase::AttentionCase(const AttentionShape & s)
    : n_kv(s.n_kv), first(s.first), last(s.last), extreme(s.seed % 13 == 4) {
    name = "seed " + std::to_string(s.seed) + " dims " + std::to_string(s.k.dim) + "," + std::to_string(s.v.dim) + " group " +
           std::to_string(s.k.group) + " bits " + std::to_string(s.k.bits) + "," + std::to_string(s.v.bits) + "/" +
           std::to_string(s.k.refined_bits) + " cells " + std::to_string(s.first) + ".." + std::to_string(s.last) + " of " +
           std::to_string(s.n_kv) + " tokens " + std::to_string(s.n_tokens) + " heads " + std::to_string(s.n_head);
    Random           random(uint64_t(s.seed) + 1);
    const HeadLayout layout = {s.k, s.v, n_kv + 5, n_kv / 3 + 1, 4};
    memory_.assign(layout.total_bytes() + 64, 0);
    const uintptr_t at = (reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64;
    head               = view_head(layout, reinterpret_cast<uint8_t *>(at));
    make_mask(s, random);
    make_rows(random);
    make_staged(random);
    make_queries(s, random);
    index = {place_.data(), staged_row_.data()};
}

inline void AttentionCase::make_mask(const AttentionShape & s, Random & random) {
    mask_.resize(size_t(s.n_tokens) * n_kv);
    for (int cell = 0; cell < n_kv; cell++) {
        const bool dead = random.below(6) == 0; // nobody sees it
        for (int token = 0; token < s.n_tokens; token++) {
            const bool  hidden = dead || random.below(8) == 0 || (token == 3 && s.n_tokens > 3); // 3 sees nothing at all
            const float bias   = s.alibi ? -float(n_kv - cell) / 16.0f : 0.0f;
            mask_[size_t(token) * n_kv + cell] = hidden ? uint16_t(0xFC00u) : half_nearest(bias);
        }
    }
}

inline bool AttentionCase::anyone_sees(int cell) const {
    for (size_t i = cell; i < mask_.size(); i += n_kv) {
        if (mask_[i] != 0xFC00u) {
            return true;
        }
    }
    return false;
}

// Committed rows: one in eight exact while room lasts, a third refined, the rest base.
inline void AttentionCase::make_rows(Random & random) {
    for (int i = 0; i < (head.n_cells + block_cells - 1) / block_cells * head.k.dim; i++) {
        head.k_mean[i] = half_nearest(2.0f * random.normal());
    }
    int n_slots = 0, n_exact = 0;
    for (int cell = 0; cell < n_kv; cell++) {
        std::vector<float> k(head.k.dim), centred(head.k.dim), v(head.v.dim);
        for (float & x : k) {
            x = extreme ? 5.0f : 2.0f * random.normal();
        }
        for (int i = 0; extreme && i < head.k.dim; i += 32) {
            k[i] = -40.0f; // the minimum of its group, far below: the codes of the others are all large
        }
        for (float & x : v) {
            x = random.normal();
        }
        const bool exact   = n_exact < head.n_exact && random.below(8) == 0,
                   refined = n_slots < head.n_slots && random.below(3) == 0;
        place_.push_back(exact ? -2 - n_exact : refined ? n_slots : place_base);
        center_key(head, cell, k.data(), centred.data());
        const int place = place_.back();
        encode_row(head.k, centred.data(), head.k_params + cell, head.n_cells, head.k_base + cell * head.k.base_bytes(),
                   place >= 0 ? head.k_refined + place * head.k.refinement_bytes() : nullptr);
        encode_row(head.v, v.data(), head.v_params + cell, head.n_cells, head.v_base + cell * head.v.base_bytes(),
                   place >= 0 ? head.v_refined + place * head.v.refinement_bytes() : nullptr);
        if (exact) {
            store_exact(head.k_exact + n_exact * head.k.dim, k.data(), head.k.dim);
            store_exact(head.v_exact + n_exact * head.v.dim, v.data(), head.v.dim);
            n_exact++;
        } else if (refined) {
            n_slots++;
        }
        if (!anyone_sees(cell)) { // NaN scales and minima: they must not reach a result
            for (int g = 0; g < head.k.n_groups(); g++) {
                head.k_params[g * head.n_cells + cell] = 0x1F8u;
            }
            for (int g = 0; g < head.v.n_groups(); g++) {
                head.v_params[g * head.n_cells + cell] = 0x1F8u;
            }
        }
    }
}

// Rows of the micro-batch wait in one cell of five; what nobody sees is NaN.
inline void AttentionCase::make_staged(Random & random) {
    int n = 0;
    for (int cell = 0; cell < n_kv; cell++) {
        staged_row_.push_back(random.below(5) == 0 ? n++ : -1);
    }
    staged = {nullptr, nullptr, head.k.dim + 8, 2 * head.v.dim};
    staged_k_.resize(n * staged.k_stride + 1);
    staged_v_.resize(n * staged.v_stride + 1);
    for (int cell = 0; cell < n_kv; cell++) {
        const bool  seen = anyone_sees(cell);
        const float nan  = std::numeric_limits<float>::quiet_NaN();
        for (int i = 0; staged_row_[cell] >= 0 && i < head.k.dim; i++) {
            staged_k_[staged_row_[cell] * staged.k_stride + i] = seen ? 2.0f * random.normal() : nan;
        }
        for (int i = 0; staged_row_[cell] >= 0 && i < head.v.dim; i++) {
            staged_v_[staged_row_[cell] * staged.v_stride + i] = seen ? random.normal() : nan;
        }
    }
    staged.k = staged_k_.data();
    staged.v = staged_v_.data();
}

// Queries that two int8 hold exactly, a power of two times -127 * 254 .. 127 * 254, the largest in every group: sets that round queries to
// those lose nothing by it, and are held to the bounds of the others.
inline void AttentionCase::make_queries(const AttentionShape & s, Random & random) {
    const int n_rows = s.n_tokens * s.n_head, most = 127 * 254;
    for (int i = 0; i < n_rows * head.k.dim; i++) {
        const int sign = extreme || random.below(2) ? 1 : -1;
        const int code = extreme || i % 32 == 5 ? most * sign : random.below(2 * most + 1) - most;
        q_.push_back(float(code) / (head.k.dim > 64 ? 262144.0f : 131072.0f));
    }
    for (int i = 0; i < s.n_head; i++) {
        slope_.push_back(s.alibi ? std::pow(2.0f, -float(i + 1)) : 1.0f);
    }
    rows = {q_.data(), slope_.data(), mask_.data(), n_kv, n_rows, s.n_tokens, s.softcap};
}

} // namespace mikv
