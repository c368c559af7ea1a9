// What happens to a cache: micro-batches of sequences that come, are forgotten and overwritten, and the settings it happens with.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "codec/half.h"
#include "format/cell.h"
#include "include/mikv.h"
#include "row_formats.h"

namespace mikv {

struct Setting {
    const char * policy;
    int          head_dim, group; // query heads of a KV head
    int          n_stream, window, rotate, end_points;
    float        softcap, max_bias;
    bool         sinks; // attention sinks
};

const Setting settings[] = {
    {"h2o", 64, 2, 1, 8, 0, 0, 0.0f, 0.0f, false},     {"normalized", 80, 3, 2, 5, 1, 0, 0.0f, 0.0f, true},
    {"snapkv", 32, 1, 1, 0, 0, 1, 20.0f, 0.0f, false}, {"peak", 64, 4, 2, 12, 1, 0, 0.0f, 8.0f, false},
    {"clamped", 96, 2, 1, 3, 0, 0, 0.0f, 0.0f, false}, {"probes", 64, 9, 1, 8, 0, 0, 0.0f, 0.0f, false},
    {"recent", 160, 1, 1, 4, 1, 0, 0.0f, 0.0f, true},  {"random", 64, 2, 2, 8, 0, 0, 0.0f, 0.0f, false},
    {"h2o*v", 128, 2, 1, 8, 0, 1, 0.0f, 0.0f, false},  {"snapkv*v", 64, 2, 1, 8, 1, 0, 0.0f, 0.0f, false},
};

constexpr int n_cells = 300, n_head_kv = 2, most_tokens = 40;

// One micro-batch of a stream: tokens' cells and what they see. Two sequences share the stream's cells.
class Scene {
public:
    explicit Scene(uint64_t seed) : random_(seed), owner_(n_cells, -1) {}

    // Tokens of one sequence; some cells of it are forgotten now and then, and taken again.
    std::vector<int> next(int n_tokens) {
        const int sequence = random_.below(3) == 0 ? 1 : 0;
        if (random_.below(4) == 0) {
            for (int cell = 0; cell < n_cells; cell++) {
                owner_[size_t(cell)] = random_.below(9) == 0 ? -1 : owner_[size_t(cell)];
            }
        }
        std::vector<int> cells;
        before_ = owner_;
        // the second and third go where no token is yet, so that blocks of cells meet few keys before theirs
        const int begin = n_batches_ == 1 ? block_cells + 20 : n_batches_ == 2 ? 2 * block_cells + 9 : 0;
        n_batches_++;
        for (int cell = begin; cell < n_cells && int(cells.size()) < n_tokens; cell++) {
            if (owner_[size_t(cell)] < 0) {
                cells.push_back(cell);
                owner_[size_t(cell)] = sequence;
            }
        }
        for (int cell = 0; int(cells.size()) < n_tokens; cell++) { // full: the first tokens go
            if (before_[size_t(cell)] >= 0) {
                cells.push_back(cell);
                before_[size_t(cell)] = -1;
                owner_[size_t(cell)]  = sequence;
            }
        }
        sequence_ = sequence;
        return cells;
    }
    bool sees(const std::vector<int> & cells, int token, int cell) const {
        for (int t = 0; t < int(cells.size()); t++) {
            if (cells[size_t(t)] == cell) {
                return t <= token;
            }
        }
        return before_[size_t(cell)] == sequence_;
    }

private:
    Random           random_;
    std::vector<int> owner_, before_;
    int              sequence_ = 0, n_batches_ = 0;
};

// The input of a micro-batch, all streams.
struct Input {
    int                   per_stream = 0, n_kv = 0;
    std::vector<int64_t>  cells;
    std::vector<float>    k, v, q, out;
    std::vector<uint16_t> mask;
};

inline std::vector<float> numbers(Random & random, size_t n, float scale) {
    std::vector<float> x(n);
    for (float & y : x) {
        y = scale * random.normal();
    }
    return x;
}

inline Input make_input(const Setting & s, std::vector<Scene> & scenes, int per_stream, Random & random) {
    Input in;
    in.per_stream = per_stream;
    std::vector<std::vector<int>> cells;
    int                           highest = 0;
    for (Scene & scene : scenes) {
        cells.push_back(scene.next(per_stream));
        for (int cell = 0; cell < n_cells; cell++) {
            highest = scene.sees(cells.back(), per_stream - 1, cell) ? std::max(highest, cell) : highest;
        }
    }
    in.n_kv = std::min(n_cells, (highest + 32) / 32 * 32);
    for (int stream = 0; stream < s.n_stream; stream++) {
        for (int t = 0; t < per_stream; t++) {
            in.cells.push_back(int64_t(stream) * n_cells + cells[size_t(stream)][size_t(t)]);
            for (int cell = 0; cell < in.n_kv; cell++) {
                const float bias = s.max_bias > 0.0f ? -float(in.n_kv - cell) / 8.0f : 0.0f;
                in.mask.push_back(scenes[size_t(stream)].sees(cells[size_t(stream)], t, cell) ? half_nearest(bias) : hidden);
            }
        }
    }
    const size_t n = size_t(per_stream) * s.n_stream;
    in.k           = numbers(random, n * n_head_kv * s.head_dim, 1.5f);
    in.v           = numbers(random, n * n_head_kv * s.head_dim, 1.0f);
    in.q           = numbers(random, n * n_head_kv * s.group * s.head_dim, 1.0f);
    in.out.resize(n * n_head_kv * s.group * s.head_dim);
    for (size_t i = 0; i < in.k.size(); i += 7) {
        in.k[i] += 3.0f; // something for the mean
    }
    return in;
}

const float sink_logits[32] = {0.3f, -1.0f, 2.0f, 0.5f};

inline mikv_step step_of(const Setting & s, Input & in) {
    mikv_step step     = {};
    step.n_tokens      = in.per_stream * s.n_stream;
    step.n_stream      = s.n_stream;
    step.n_kv          = in.n_kv;
    step.n_head        = n_head_kv * s.group;
    step.scale         = 1.0f / std::sqrt(float(s.head_dim));
    step.max_bias      = s.max_bias;
    step.logit_softcap = s.softcap;
    step.cells         = in.cells.data();
    step.k             = in.k.data();
    step.v             = in.v.data();
    step.q             = in.q.data();
    step.mask          = in.mask.data();
    step.sinks         = s.sinks ? sink_logits : nullptr;
    step.out           = in.out.data();
    return step;
}

} // namespace mikv
