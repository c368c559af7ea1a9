#include "store/gpu_self_test.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "codec/half.h"
#include "kernel/batch.h"
#include "store/gpu_step.h"

namespace mikv {

namespace {

constexpr int n_head_kv = 2, n_cells = 160;

struct GoldenCase {
    const char * policy;
    int          k_bits, v_bits, refined_bits, head_dim, group, rotate, end_points;
};
const GoldenCase cases[] = {
    {"h2o", 3, 2, 6, 64, 2, 0, 0},
    {"snapkv", 4, 4, 8, 128, 4, 0, 1},
    {"recent", 2, 3, 5, 80, 1, 1, 0}, // groups of 32: the plain attention
    {"normalized", 4, 2, 5, 256, 1, 0, 0},
};
const int batches[] = {70, 1, 2, 9, 30, 3, 1}; // tokens: many queries and few, as many as each kernel takes

// The largest differences that rounding explains. Values are near 1 in size, and a wrong row is about as far off.
constexpr double most_output = 2e-3, most_logit_share = 1e-2;
// Scores that differ in their last place may change who gets a slot: so many of a hundred rows.
constexpr int most_other_places = 2;

class Numbers { // a fixed sequence, about normally distributed
public:
    float next() {
        float sum = 0;
        for (int i = 0; i < 6; i++) {
            state_ = state_ * 6364136223846793005u + 1442695040888963407u;
            sum += float(state_ >> 40) / float(1 << 24) - 0.5f;
        }
        return sum * 1.4f;
    }
    std::vector<float> many(size_t n, float scale) {
        std::vector<float> x(n);
        for (float & y : x) {
            y = scale * next();
        }
        return x;
    }

private:
    uint64_t state_ = 1;
};

std::shared_ptr<Cache> make_cache(const GoldenCase & g) {
    mikv_config c   = default_config();
    c.k_bits        = g.k_bits;
    c.v_bits        = g.v_bits;
    c.refined_bits  = g.refined_bits;
    c.refined_share = 0.2f;
    c.sinks         = 3;
    c.window        = 8;
    c.rotate        = g.rotate;
    c.end_points    = g.end_points;
    c.center_keys   = 1;
    std::snprintf(c.policy, sizeof(c.policy), "%s", g.policy);
    std::shared_ptr<Cache> cache;
    const mikv_shape       shape = {1, n_head_kv, n_cells, 1, g.head_dim, g.head_dim};
    return Cache::create(c, shape, {0}, &cache) == MIKV_OK ? cache : nullptr;
}

// One sequence, from cell 0 on.
struct Batch {
    Batch(const GoldenCase & g, int first, int n, Numbers & numbers) : n_tokens(n), n_kv((first + n + 31) / 32 * 32) {
        for (int t = 0; t < n; t++) {
            cells.push_back(first + t);
            for (int cell = 0; cell < n_kv; cell++) {
                mask.push_back(cell <= first + t ? uint16_t(0) : hidden);
            }
        }
        const size_t rows = size_t(n) * n_head_kv * g.head_dim;
        k                 = numbers.many(rows, 1.5f);
        v                 = numbers.many(rows, 1.0f);
        q                 = numbers.many(rows * size_t(g.group), 1.0f);
        out.resize(q.size());
    }
    mikv_step step(const GoldenCase & g) {
        mikv_step s{};
        s.n_tokens = n_tokens;
        s.n_stream = 1;
        s.n_kv     = n_kv;
        s.n_head   = n_head_kv * g.group;
        s.scale    = 1.0f / std::sqrt(float(g.head_dim));
        s.cells    = cells.data();
        s.k        = k.data();
        s.v        = v.data();
        s.q        = q.data();
        s.mask     = mask.data();
        s.out      = out.data();
        return s;
    }

    int                   n_tokens, n_kv;
    std::vector<int64_t>  cells;
    std::vector<uint16_t> mask;
    std::vector<float>    k, v, q, out;
};

// An array on the device with these values.
template <class T> class Upload {
public:
    Upload(const GpuQueue & queue, const std::vector<T> & values) : memory_(queue, values.size() * sizeof(T)) {
        good_ = memory_.there() &&
                queue.device->write(queue.queue, memory_.data(), values.data(), values.size() * sizeof(T)) == gpu_ok;
    }
    bool good() const { return good_; }
    T *  data() const { return reinterpret_cast<T *>(memory_.data()); }

private:
    GpuMemory memory_;
    bool      good_;
};

GpuRows rows_of(const float * rows, int n_heads, int head_dim) {
    GpuRows r;
    r.rows        = reinterpret_cast<const uint8_t *>(rows);
    r.head_bytes  = int64_t(head_dim) * 4;
    r.token_bytes = r.head_bytes * n_heads;
    return r;
}

// What the device answers; where it loads for another attention, the keys that it loaded. Empty: an error.
std::vector<float> run_on(GpuCache & gpu, const GoldenCase & g, Batch & b, std::vector<uint16_t> * loaded) {
    const GpuQueue &            queue = gpu.queue();
    const Upload<int64_t>       cells(queue, b.cells);
    const Upload<uint16_t>      mask(queue, b.mask);
    const Upload<float>         k(queue, b.k), v(queue, b.v), q(queue, b.q), out(queue, b.out);
    const std::vector<uint16_t> nothing(size_t(n_head_kv) * b.n_kv * g.head_dim);
    const Upload<uint16_t>      k_loaded(queue, nothing), v_loaded(queue, nothing);
    GpuStep                     step(gpu, {0, 1, 0, b.n_tokens, b.n_kv, n_head_kv * g.group, true});
    if (!cells.good() || !mask.good() || !k.good() || !v.good() || !q.good() || !out.good() || !v_loaded.good() ||
        !step.reserve() || gpu.bring_back() != gpu_ok) {
        return {};
    }
    GpuStepData d;
    d.cells      = cells.data();
    d.q          = rows_of(q.data(), n_head_kv * g.group, g.head_dim);
    d.mask       = mask.data();
    d.mask_token = b.n_kv;
    d.out        = out.data();
    d.loaded     = step.few() ? GpuLoaded{} : GpuLoaded{k_loaded.data(), v_loaded.data()};
    d.scale      = 1.0f / std::sqrt(float(g.head_dim));
    d.cells_last = b.n_tokens % 2 != 0; // both ways
    int error    = step.enter(false, rows_of(k.data(), n_head_kv, g.head_dim));
    error        = error ? error : step.enter(true, rows_of(v.data(), n_head_kv, g.head_dim));
    error        = error ? error : step.begin(d);
    error        = error ? error : step.attend(d);
    std::vector<float> result(b.out.size());
    if (!error && !step.few()) {
        loaded->resize(nothing.size());
        error = queue.device->read(queue.queue, loaded->data(), k_loaded.data(), nothing.size() * sizeof(uint16_t));
    }
    error = error ? error : queue.device->read(queue.queue, result.data(), out.data(), result.size() * sizeof(float));
    return error ? std::vector<float>() : result;
}

std::string far_off(const char * what, double got, double wanted) {
    char text[128];
    std::snprintf(text, sizeof(text), "%s: %.6g where the CPU has %.6g", what, got, wanted);
    return text;
}

// Rows as the batch's attention sees them: those before it as the cache had them, its own exact.
std::string compare_loaded(const std::vector<uint16_t> & loaded, const std::vector<float> & before, const GoldenCase & g,
                           const Batch & b) {
    const int first = int(b.cells[0]), width = n_head_kv * g.head_dim;
    for (int cell = 0; cell < first + b.n_tokens; cell++) {
        for (int i = 0; i < width && !loaded.empty(); i++) {
            const int   head   = i / g.head_dim;
            const float wanted = cell < first ? before[size_t(cell * width + i)] : b.k[size_t((cell - first) * width + i)];
            const float got    = half_to_float(loaded[size_t((head * b.n_kv + cell) * g.head_dim + i % g.head_dim)]);
            if (!(std::fabs(got - wanted) <= most_output * (1 + std::fabs(wanted)))) {
                return far_off("keys that were loaded", got, wanted);
            }
        }
    }
    return "";
}

std::string compare_output(const std::vector<float> & got, const std::vector<float> & wanted) {
    for (size_t i = 0; i < wanted.size(); i++) {
        if (!(std::fabs(double(got[i]) - wanted[i]) <= most_output)) {
            return far_off("attention", got[i], wanted[i]);
        }
    }
    return "";
}

// Everything that is left behind: places, scores, rows, counts.
std::string compare_caches(Cache & gpu, Cache & cpu) {
    const int            width = n_head_kv * cpu.shape().head_dim_k, n = n_head_kv * n_cells;
    std::vector<uint8_t> place(static_cast<size_t>(n)), wanted_place(place);
    std::vector<float>   row(size_t(n_cells) * width), wanted_row(row), score(size_t(n), 0.0f), wanted_score(score);
    gpu.precision(0, 0, place.data());
    cpu.precision(0, 0, wanted_place.data());
    gpu.scores(0, 0, score.data());
    cpu.scores(0, 0, wanted_score.data());
    int n_other = 0;
    for (int i = 0; i < n; i++) {
        n_other += place[size_t(i)] != wanted_place[size_t(i)];
        const double apart = std::fabs(double(score[size_t(i)]) - wanted_score[size_t(i)]);
        if (place[size_t(i)] == wanted_place[size_t(i)] && !(apart <= most_logit_share * (1 + wanted_score[size_t(i)]))) {
            return far_off("score of a row", score[size_t(i)], wanted_score[size_t(i)]);
        }
    }
    if (n_other * 100 > most_other_places * n) {
        return far_off("rows that have the CPU's precision", n - n_other, n);
    }
    for (bool value : {false, true}) {
        gpu.read(0, value, 0, 0, n_cells, row.data());
        cpu.read(0, value, 0, 0, n_cells, wanted_row.data());
        for (int i = 0; i < n_cells * width; i++) {
            const size_t at   = size_t(i);
            const size_t cell = size_t(i % width / cpu.shape().head_dim_k * n_cells + i / width);
            if (place[cell] == wanted_place[cell] && std::memcmp(&row[at], &wanted_row[at], sizeof(float)) != 0) {
                return far_off(value ? "value that was stored" : "key that was stored", row[at], wanted_row[at]);
            }
        }
    }
    const mikv_stats got = gpu.stats(), wanted = cpu.stats();
    if (got.tokens != wanted.tokens || got.rows_exact != wanted.rows_exact || got.rows_refined != wanted.rows_refined) {
        return far_off("rows that are refined", double(got.rows_refined), double(wanted.rows_refined));
    }
    return "";
}

std::string run_case(const GpuQueue & queue, const GoldenCase & g) {
    const std::shared_ptr<Cache> cpu = make_cache(g), moved = make_cache(g);
    GpuCache *                   gpu = cpu && moved ? GpuCache::move(queue, *moved) : nullptr;
    if (!gpu) {
        return "no memory for a small cache";
    }
    Numbers numbers;
    int     first = 0;
    for (int n_tokens : batches) {
        Batch                 batch(g, first, n_tokens, numbers);
        std::vector<float>    before(size_t(n_cells) * n_head_kv * g.head_dim);
        std::vector<uint16_t> loaded;
        cpu->read(0, false, 0, 0, n_cells, before.data());
        if (run_step(*cpu, 0, batch.step(g), 1) != MIKV_OK) {
            return "the CPU's own step failed";
        }
        const std::vector<float> out = run_on(*gpu, g, batch, &loaded);
        if (out.empty()) {
            return "a kernel could not be run";
        }
        std::string fault = loaded.empty() ? compare_output(out, batch.out) : compare_loaded(loaded, before, g, batch);
        fault             = fault.empty() ? compare_caches(*moved, *cpu) : fault;
        if (!fault.empty()) {
            return fault;
        }
        first += n_tokens;
    }
    return "";
}

} // namespace

std::string gpu_self_test(const GpuQueue & queue) {
    for (const GoldenCase & g : cases) {
        const std::string fault = run_case(queue, g);
        if (!fault.empty()) {
            return std::string(g.policy) + ", head size " + std::to_string(g.head_dim) + ": " + fault;
        }
    }
    return "";
}

} // namespace mikv
