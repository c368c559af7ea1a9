// Every kernel set that this machine can run against the plain one, over a matrix of row formats, batches and placements.
//
//   kernel_matrix           all sets; exit code 1 if one disagrees
//   kernel_matrix avx512    this set alone; exit code 77 if the machine cannot run it
//
// Needs no Python, no ggml and no model, so that it also runs where those cannot: under qemu for aarch64, and with AVX-512
// emulated (MIKV_EMULATE_AVX512). Bytes must be equal; floats may differ by the bounds that bound.h derives.
#include <cstdio>
#include <cstring>

#include "attention_case.h"
#include "bound.h"

namespace mikv {

namespace {

struct Tally {
    const char * set;
    int          cases  = 0;
    int          faults = 0;

    void count(bool good, const char * what, const std::string & where, double got, double wanted, double bound) {
        cases++;
        if (!good && ++faults <= 20) {
            std::printf("%s: %s: %s: %.9g where plain has %.9g, bound %.3g\n", set, where.c_str(), what, got, wanted, bound);
        }
    }
};

std::string name_of(const RowFormat & f) {
    return "dim " + std::to_string(f.dim) + " group " + std::to_string(f.group) + " bits " + std::to_string(f.bits) + "/" +
           std::to_string(f.refined_bits) + (f.end_points ? " end points" : "") +
           (f.n_lead ? " leading " + std::to_string(f.n_lead) + " at " + std::to_string(f.lead_bits) : "");
}

// --- store and load -------------------------------------------------------------------------------------------------------------

struct Encoded {
    std::vector<uint16_t> params;
    std::vector<uint8_t>  base;
    std::vector<uint8_t>  refinement;
};

constexpr int     params_stride = 3;
constexpr uint8_t canary        = 0xA5; // around and between what a kernel may write

Encoded encode(const Kernels & set, const RowFormat & f, const std::vector<float> & row, bool refined) {
    Encoded e{std::vector<uint16_t>(f.n_groups() * params_stride + 1, 0xA5A5u),
              std::vector<uint8_t>(f.base_bytes() + 64, canary), std::vector<uint8_t>(f.refinement_bytes() + 64, canary)};
    set.encode_row(f, row.data(), e.params.data(), params_stride, e.base.data(), refined ? e.refinement.data() : nullptr);
    return e;
}

void check_store(const Kernels & set, const RowFormat & f, const RowPattern & pattern, Tally & tally) {
    const std::vector<float> row   = pattern.make(f.dim);
    const std::string        where = name_of(f) + " row \"" + pattern.name + "\"";
    for (bool refined : {false, true}) {
        const Encoded got = encode(set, f, row, refined), wanted = encode(plain_kernels, f, row, refined);
        tally.count(got.params == wanted.params, "params", where, got.params[0], wanted.params[0], 0);
        tally.count(got.base == wanted.base, "base", where, got.base[0], wanted.base[0], 0);
        tally.count(got.refinement == wanted.refinement, "refinement", where, got.refinement[0], wanted.refinement[0], 0);
    }
    const Encoded e = encode(plain_kernels, f, row, true);
    for (bool refined : {false, true}) {
        std::vector<float> got(f.dim + 16, -1.0f), wanted(got);
        const uint8_t *    refinement = refined ? e.refinement.data() : nullptr;
        set.decode_row(f, e.params.data(), params_stride, e.base.data(), refinement, got.data());
        plain_kernels.decode_row(f, e.params.data(), params_stride, e.base.data(), refinement, wanted.data());
        for (int i = 0; i < f.dim + 16; i++) {
            const double bound = i < f.dim ? decode_bound(e.params[i / f.group * params_stride]) : 0.0;
            tally.count(std::fabs(double(got[i]) - wanted[i]) <= bound, refined ? "refined value" : "base value", where, got[i],
                        wanted[i], bound);
        }
    }
}

void check_stores(const Kernels & set, Tally & tally) {
    std::vector<RowFormat> formats = all_formats();
    for (const RowFormat & format : leading_formats()) {
        formats.push_back(format);
    }
    for (const RowFormat & format : formats) {
        for (const RowPattern & pattern : row_patterns) {
            check_store(set, format, pattern, tally);
        }
    }
}

// --- score and attend -----------------------------------------------------------------------------------------------------------

// What a set made of a case: partial sums normalised, so that sets may differ in m.
struct Attended {
    std::vector<float>  weights; // [n_rows][n_kv]
    std::vector<double> share;   // weights / l
    std::vector<double> out;     // [n_rows][v.dim] acc / l
    std::vector<double> lse;     // m + log l

    double largest_share(int row, const AttentionCase & c) const {
        const auto first = share.begin() + size_t(row) * c.n_kv;
        return *std::max_element(first + c.first, first + c.last);
    }
    int n_seen(int row, const AttentionCase & c) const {
        const auto first = share.begin() + size_t(row) * c.n_kv;
        return int(std::count_if(first + c.first, first + c.last, [](double x) { return x > 0.0; }));
    }
};

Attended attend(const Kernels & set, AttentionCase & c, bool few) {
    const int          n = c.rows.n_rows, dim = c.head.v.dim;
    Attended           a{std::vector<float>(n * c.n_kv, canary_weight), {}, {}, {}};
    std::vector<float> m(n), l(n), acc(n * dim);
    const Partial      out{m.data(), l.data(), acc.data()};
    if (few) {
        set.attend_few(c.head, c.index, c.staged, c.rows, c.first, c.last, a.weights.data(), c.n_kv, out);
    } else {
        set.attend_many(c.head, c.index, c.staged, c.rows, c.first, c.last, out);
    }
    for (int row = 0; row < n; row++) {
        const double scale = l[row] > 0.0f ? 1.0 / l[row] : 0.0;
        a.lse.push_back(l[row] > 0.0f ? m[row] + std::log(double(l[row])) : -1e9);
        for (int i = 0; i < c.n_kv; i++) {
            a.share.push_back(a.weights[row * c.n_kv + i] * scale);
        }
        for (int i = 0; i < dim; i++) {
            a.out.push_back(acc[row * dim + i] * scale);
        }
    }
    return a;
}

void check_scores(const Kernels & set, AttentionCase & c, const CaseBound & bound, Tally & tally) {
    std::vector<float> got(c.rows.n_rows * c.n_kv, canary_weight), wanted(got);
    set.score(c.head, c.index, c.staged, c.rows, c.first, c.last, got.data(), c.n_kv);
    plain_kernels.score(c.head, c.index, c.staged, c.rows, c.first, c.last, wanted.data(), c.n_kv);
    for (size_t i = 0; i < got.size(); i++) {
        const bool   seen  = wanted[i] > masked_logit && wanted[i] != canary_weight;
        const double limit = seen ? bound.logit[i / c.n_kv] : 0.0;
        tally.count(std::fabs(double(got[i]) - wanted[i]) <= limit, "logit", c.name, got[i], wanted[i], limit);
    }
}

void check_attention(const Kernels & set, AttentionCase & c, bool few, const CaseBound & bound, Tally & tally) {
    const Attended    got = attend(set, c, few), wanted = attend(plain_kernels, c, few);
    const std::string where = c.name + (few ? " few" : " many");
    const int         dim   = c.head.v.dim;
    for (int row = 0; row < c.rows.n_rows; row++) {
        const double relative = bound.relative(row);
        tally.count(std::fabs(got.lse[row] - wanted.lse[row]) <= relative, "log sum", where, got.lse[row], wanted.lse[row],
                    relative);
        for (int i = 0; few && i < c.n_kv; i++) {
            const size_t at      = size_t(row) * c.n_kv + i;
            const bool   outside = i < c.first || i >= c.last;
            const double limit   = outside ? 0.0 : relative * wanted.share[at] + exp_end;
            tally.count(std::fabs(got.share[at] - wanted.share[at]) <= limit || (outside && got.weights[at] == canary_weight),
                        "weight", where, got.share[at], wanted.share[at], limit);
        }
        const double words = few ? bound.words(wanted.largest_share(row, c), wanted.n_seen(row, c)) : 0.0;
        for (int i = 0; i < dim; i++) {
            const size_t at    = size_t(row) * dim + i;
            const double limit = relative * bound.value + bound.decode + words;
            tally.count(std::fabs(got.out[at] - wanted.out[at]) <= limit, "output", where, got.out[at], wanted.out[at], limit);
        }
    }
}

void check_attentions(const Kernels & set, Tally & tally) {
    for (const AttentionShape & shape : attention_shapes()) {
        AttentionCase   c(shape);
        const CaseBound bound(c);
        check_scores(set, c, bound, tally);
        check_attention(set, c, true, bound, tally);
        check_attention(set, c, false, bound, tally);
    }
}

// half_rounded goes without branches to where half_nearest goes with them: every 1009th float of f16's range.
int check_half_rounding() {
    Tally tally{"half"};
    for (uint64_t bits = 0; bits <= 0xFFFFFFFFu; bits += 1009) {
        const float value = MIKV_BITCAST(float, uint32_t(bits));
        if (std::fabs(value) <= half_max) { // NaN is not
            const float got = half_rounded(value), wanted = half_to_float(half_nearest(value));
            tally.count(MIKV_BITCAST(uint32_t, got) == MIKV_BITCAST(uint32_t, wanted), "rounded", "float", got, wanted, 0);
        }
    }
    std::printf("half: %d comparisons, %d faults\n", tally.cases, tally.faults);
    return tally.faults;
}

// Returns the number of faults.
int check_set(const Kernels & set) {
    Tally tally{set.name};
    check_stores(set, tally);
    check_attentions(set, tally);
    check_small_operations(set, [&](bool good, const char * what, double got, double wanted, double bound) {
        tally.count(good, what, "vector", got, wanted, bound);
    });
    std::printf("%s: %d comparisons, %d faults\n", set.name, tally.cases, tally.faults);
    return tally.faults;
}

std::vector<const Kernels *> sets_to_check() {
    std::vector<const Kernels *> sets;
    for (int i = 0; i < kernels_count(); i++) {
        sets.push_back(kernels_at(i));
    }
#if defined(MIKV_EMULATE_AVX512) // not instructions but function calls: runs anywhere
    if (std::find(sets.begin(), sets.end(), &avx512_kernels) == sets.end()) {
        sets.push_back(&avx512_kernels);
    }
#endif
    return sets;
}

} // namespace

} // namespace mikv

int main(int argc, char ** argv) {
    int checked = 0, faults = mikv::check_half_rounding();
    for (const mikv::Kernels * set : mikv::sets_to_check()) {
        if (argc < 2 || std::strcmp(argv[1], set->name) == 0) {
            faults += mikv::check_set(*set);
            checked++;
        }
    }
    if (checked == 0) {
        std::printf("%s: this machine has no such kernel set\n", argv[1]);
        return 77;
    }
    return faults ? 1 : 0;
}
