// States of caches, saved, damaged and read, without the checksums that a file puts around them: the reader must refuse or make a cache that
// works, never crash (built with -DMIKV_SANITIZE=address,undefined it looks closely), and the running cache must stay as it was.
//
//   state_damage            1000 rounds; exit code 1 if something changed that should not
//   state_damage 20000 7    so many, of this seed
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "include/mikv.h"

namespace {

using Bytes = std::vector<uint8_t>;

constexpr int      n_head = 4, n_kv = 320;
constexpr uint16_t hidden = 0xFC00u; // f16 minus infinity

struct Layout {
    const char * name;
    int          k_bits, v_bits, refined_bits;
    float        refined_share, rows;
    const char * policy;
    int          balance, center_keys;
};

const Layout layouts[] = {
    {"default", 4, 2, 5, 0.12f, 1.0f, "normalized", MIKV_BALANCE_OFF, 1},
    {"all refined", 3, 2, 8, 1.0f, 1.0f, "h2o", MIKV_BALANCE_OFF, 1},
    {"none refined", 2, 2, 2, 0.0f, 1.0f, "recent", MIKV_BALANCE_OFF, 0},
    {"balanced", 2, 2, 8, 0.2f, 1.0f, "expected", MIKV_BALANCE_RMS, 1},
    {"f16", 2, 3, 16, 0.2f, 1.0f, "snapkv", MIKV_BALANCE_OFF, 1},
    {"pool", 3, 2, 8, 0.3f, 0.4f, "h2o", MIKV_BALANCE_OFF, 1},
    {"whole pool", 2, 2, 8, 1.0f, 0.3f, "h2o", MIKV_BALANCE_OFF, 0},
    {"f16 pool", 2, 2, 16, 1.0f, 0.3f, "keydiff", MIKV_BALANCE_OFF, 0},
};
constexpr int n_layouts = int(sizeof(layouts) / sizeof(layouts[0]));

const mikv_shape shape = {2, 2, n_kv, 2, 64, 32};

std::mt19937 generator; // NOLINT: one for all, so that a seed says everything

int below(size_t n) { return int(generator() % n); }

void require(bool good, const char * what) {
    if (!good) {
        std::printf("%s: %s\n", what, mikv_last_error());
        std::exit(1);
    }
}

uint64_t make(const Layout & l) {
    mikv_config c;
    mikv_config_default(&c);
    c.k_bits = l.k_bits, c.v_bits = l.v_bits, c.refined_bits = l.refined_bits, c.refined_share = l.refined_share,
    c.rows    = l.rows;
    c.balance = l.balance, c.center_keys = l.center_keys, c.window = 8, c.rotate = l.balance != MIKV_BALANCE_OFF;
    std::snprintf(c.policy, sizeof(c.policy), "%s", l.policy);
    uint64_t id = 0;
    require(mikv_cache_create(&c, &shape, &id) == MIKV_OK, l.name);
    return id;
}

// n tokens from cell `first` on, in both streams and all layers.
void feed(uint64_t id, int first, int n) {
    std::normal_distribution<float> normal;
    const auto                      floats = [&](size_t size) {
        std::vector<float> x(size);
        for (float & v : x) {
            v = normal(generator);
        }
        return x;
    };
    const int             n_tokens = n * shape.n_stream;
    std::vector<int64_t>  cells;
    std::vector<uint16_t> mask(size_t(n_tokens) * n_kv, hidden);
    for (int t = 0; t < n_tokens; t++) {
        const int stream = t / n, cell = first + t % n;
        cells.push_back(int64_t(stream) * n_kv + cell);
        std::fill_n(mask.begin() + size_t(t) * n_kv, cell + 1, uint16_t(0));
    }
    for (int index = 0; index < shape.n_layer; index++) {
        const auto         k = floats(size_t(n_tokens) * shape.n_head_kv * shape.head_dim_k);
        const auto         v = floats(size_t(n_tokens) * shape.n_head_kv * shape.head_dim_v);
        const auto         q = floats(size_t(n_tokens) * n_head * shape.head_dim_k);
        std::vector<float> out(size_t(n_tokens) * n_head * shape.head_dim_v);
        mikv_step          step{};
        step.n_tokens = n_tokens, step.n_stream = shape.n_stream, step.n_kv = n_kv, step.n_head = n_head, step.scale = 0.125f;
        step.cells = cells.data(), step.k = k.data(), step.v = v.data(), step.q = q.data(), step.mask = mask.data();
        step.out = out.data();
        require(mikv_cache_step(id, index, &step, 1) == MIKV_OK, "a step");
    }
}

Bytes written(uint64_t id, int n) {
    std::vector<int64_t> cells;
    for (int stream = 0; stream < shape.n_stream; stream++) {
        for (int cell = 0; cell < n; cell++) {
            cells.push_back(int64_t(stream) * n_kv + cell);
        }
    }
    int64_t size_bytes = 0;
    require(mikv_state_write(id, cells.data(), int64_t(cells.size()), nullptr, 0, &size_bytes) == MIKV_OK, "a state's size");
    Bytes out(static_cast<size_t>(size_bytes));
    require(mikv_state_write(id, cells.data(), int64_t(cells.size()), out.data(), size_bytes, &size_bytes) == MIKV_OK,
            "a state");
    return out;
}

Bytes damaged(Bytes state, const Bytes & other) {
    const size_t at = size_t(below(state.size()));
    switch (below(6)) {
    case 0:
        state[at] ^= uint8_t(1 << below(8));
        break;
    case 1:
        state.resize(at);
        break;
    case 2: // the beginning of one and the end of another
        state.resize(at);
        state.insert(state.end(), other.begin() + int64_t(std::min(at, other.size())), other.end());
        break;
    case 3: // a number that means much
        for (size_t i = at & ~size_t(3); i < std::min(state.size(), (at & ~size_t(3)) + 4); i++) {
            state[i] = uint8_t(below(2) ? 0xFF : 0x7F);
        }
        break;
    case 4: // near the beginning, where the sizes are
        state[size_t(below(std::min<size_t>(state.size(), 600)))] = uint8_t(below(256));
        break;
    default:
        state.erase(state.begin() + int64_t(at), state.begin() + int64_t(std::min(state.size(), at + 1 + size_t(below(64)))));
    }
    return state;
}

struct Scene {
    uint64_t id;
    Bytes    state;
};

// A cache that was read must go on: attention over all of it, new tokens, another state.
void go_on(uint64_t twin, int n) {
    feed(twin, n, 3);
    feed(twin, n + 3, 1);
    written(twin, n + 4);
}

int check_round(const std::vector<Scene> & scenes, int n) {
    const Scene & scene = scenes[size_t(below(scenes.size()))];
    const Bytes   bytes = damaged(scene.state, scenes[size_t(below(scenes.size()))].state);
    // an exact copy, so that the sanitizer sees a read of one byte too many; of another layout now and then
    const uint64_t to   = scenes[size_t(below(4) ? int(&scene - scenes.data()) : below(scenes.size()))].id;
    uint64_t       twin = 0;
    if (mikv_state_read(to, bytes.data(), int64_t(bytes.size()), nullptr, 0, &twin) != MIKV_OK) {
        return 0;
    }
    go_on(twin, n);
    mikv_cache_free(twin);
    return 1;
}

} // namespace

int main(int argc, char ** argv) {
    const int n_rounds = argc > 1 ? std::atoi(argv[1]) : 1000, n = 200;
    generator.seed(argc > 2 ? unsigned(std::atoi(argv[2])) : 1u);
    std::vector<Scene> scenes;
    for (const Layout & layout : layouts) {
        const uint64_t id = make(layout);
        feed(id, 0, 150);
        feed(id, 150, 49);
        feed(id, 199, 1);
        scenes.push_back({id, written(id, n)});
    }
    for (int i = 0; i < n_layouts; i++) { // undamaged, in every layout: the same bytes in its own
        for (int j = 0; j < n_layouts; j++) {
            uint64_t          twin   = 0;
            const mikv_status status = mikv_state_read(scenes[size_t(j)].id, scenes[size_t(i)].state.data(),
                                                       int64_t(scenes[size_t(i)].state.size()), nullptr, 0, &twin);
            const bool        drops  = layouts[i].rows < 1.0f && layouts[j].rows >= 1.0f; // tokens that are not there any more
            require((status == MIKV_OK) != drops, layouts[i].name);
            if (status == MIKV_OK) {
                require(i != j || written(twin, n) == scenes[size_t(i)].state,
                        "a state that was read is not the one that was written");
                go_on(twin, n);
                mikv_cache_free(twin);
            }
        }
    }
    int n_read = 0;
    for (int round = 0; round < n_rounds; round++) {
        n_read += check_round(scenes, n);
    }
    for (const Scene & scene : scenes) {
        require(written(scene.id, n) == scene.state, "a cache changed that was only asked");
        mikv_cache_free(scene.id);
    }
    std::printf("%d damaged states: %d refused, %d read as something that works\n", n_rounds, n_rounds - n_read, n_read);
    return 0;
}
