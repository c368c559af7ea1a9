// The GPU kernels against the CPU's plain ones, over the matrix of kernel_matrix.cpp: store, load, attention.
//
//   gpu_matrix             on the emulator, which watches every access; another order of turns must give the same bits
//   gpu_matrix --quick     one order, a tenth of the cases
//   gpu_matrix cuda        on the GPU, if this was built for one; else the exit code is 77
//
// Bytes must be equal; floats may differ by the bounds that bound.h derives.
#include <cstring>

#include "bound.h"
#include "gpu_device.h"
#include "kernel/load.h"

namespace mikv {

namespace {

struct Run {
    GpuQueue         queue;
    EmulatorReport * report;
    GpuTally &       tally;
    bool             quick;
};

// --- store and load -------------------------------------------------------------------------------------------------------------

constexpr int n_patterns  = sizeof(row_patterns) / sizeof(row_patterns[0]);
constexpr int store_heads = 3; // one has base rows, one refined rows, one exact rows and refined ones

constexpr int first_cell = block_cells - n_patterns / 2; // they lie in two blocks of cells

int32_t store_place(int head, int token) { return head == 0 ? gpu_place_base : head == 1 || token > 1 ? token : -2 - token; }

struct StoreCase {
    RowFormat                         f;
    HeadLayout                        layout;
    std::vector<std::vector<uint8_t>> images;
    std::vector<float>                rows; // [n_patterns][store_heads][dim], keys and values alike
    std::vector<int32_t>              places;
    std::vector<int64_t>              cells;
};

StoreCase make_store(const RowFormat & f) {
    StoreCase c;
    c.f      = f;
    c.layout = {f, f, first_cell + n_patterns, n_patterns, 2};
    Random random(uint64_t(f.dim * 64 + f.bits * 8 + f.refined_bits));
    for (int head = 0; head < store_heads; head++) {
        c.images.push_back(std::vector<uint8_t>(c.layout.total_bytes(), 0xA5));
        const HeadView h = view_head(c.layout, c.images.back().data());
        for (int i = 0; i < h.n_blocks() * f.dim; i++) {
            h.k_mean[i] = half_nearest(random.normal());
        }
        for (int token = 0; token < n_patterns; token++) {
            c.places.push_back(store_place(head, token));
        }
    }
    for (int token = 0; token < n_patterns; token++) {
        c.cells.push_back(first_cell + token);
        for (int head = 0; head < store_heads; head++) {
            const std::vector<float> row = row_patterns[token].make(f.dim);
            c.rows.insert(c.rows.end(), row.begin(), row.end());
        }
    }
    return c;
}

// What the CPU makes of it.
void store_plain(StoreCase & c) {
    std::vector<float> centred(size_t(c.f.dim));
    for (int head = 0; head < store_heads; head++) {
        const HeadView h = view_head(c.layout, c.images[size_t(head)].data());
        for (int token = 0; token < n_patterns; token++) {
            const float * row   = c.rows.data() + (token * store_heads + head) * c.f.dim;
            const int     cell  = int(c.cells[size_t(token)]);
            const int     place = c.places[size_t(head * n_patterns + token)];
            if (place < place_base) {
                store_exact(h.k_exact + (-2 - place) * c.f.dim, row, c.f.dim);
                store_exact(h.v_exact + (-2 - place) * c.f.dim, row, c.f.dim);
                continue;
            }
            center_key(h, cell, row, centred.data());
            encode_row(h.k, centred.data(), h.k_params + cell, h.n_cells, h.k_base + cell * h.k.base_bytes(),
                       place >= 0 ? h.k_refined + place * h.k.refinement_bytes() : nullptr);
            encode_row(h.v, row, h.v_params + cell, h.n_cells, h.v_base + cell * h.v.base_bytes(),
                       place >= 0 ? h.v_refined + place * h.v.refinement_bytes() : nullptr);
        }
    }
}

std::string name_of(const RowFormat & f) {
    return "dim " + std::to_string(f.dim) + " group " + std::to_string(f.group) + " bits " + std::to_string(f.bits) + "/" +
           std::to_string(f.refined_bits) + (f.end_points ? " end points" : "");
}

// load of what was stored, where it was stored.
void check_load(Run & run, const StoreCase & c, const DeviceHeads & heads) {
    const int            n_kv = c.layout.n_cells;
    std::vector<int32_t> place(size_t(store_heads * n_kv), gpu_place_base);
    std::vector<uint8_t> flags(size_t(n_kv), 0);
    for (int token = 0; token < n_patterns; token++) {
        flags[size_t(c.cells[size_t(token)])] = token == 7 ? 0 : cell_holds; // one is gone
        for (int head = 0; head < store_heads; head++) {
            place[size_t(head * n_kv + c.cells[size_t(token)])] = c.places[size_t(head * n_patterns + token)];
        }
    }
    DeviceArray<int32_t>  d_place(run.queue, place);
    DeviceArray<uint8_t>  d_flags(run.queue, flags);
    const size_t          n_values = size_t(n_patterns) * store_heads * c.f.dim;
    DeviceArray<uint16_t> k(run.queue, n_values), v(run.queue, n_values);
    LoadArgs              a = {};
    a.layer  = {heads.data(), nullptr, d_place.data(), 1, store_heads, 1, n_kv, n_kv, n_patterns, c.f.dim, c.f.dim};
    a.flags  = d_flags.data();
    a.k      = k.data();
    a.v      = v.data();
    a.k_cell = a.v_cell = int64_t(store_heads) * c.f.dim;
    a.k_head = a.v_head = c.f.dim;
    a.k_dim = a.v_dim = c.f.dim;
    a.first_cell      = first_cell;
    run.tally.count(gpu_load(run.queue, a) == gpu_ok, "load " + name_of(c.f));
    run.tally.take(*run.report, "load " + name_of(c.f));
    const std::vector<uint16_t> got_k = k.read(), got_v = v.read();
    const std::string           where = "load " + name_of(c.f);
    std::vector<float>          row(size_t(c.f.dim));
    StoreCase                   image = c; // view_head wants to write
    for (int head = 0; head < store_heads; head++) {
        const HeadView h = view_head(c.layout, image.images[size_t(head)].data());
        for (int cell = first_cell; cell < n_kv; cell++) {
            for (bool value : {false, true}) {
                if (flags[size_t(cell)]) {
                    (value ? load_value : load_key)(h, cell, place[size_t(head * n_kv + cell)], row.data());
                }
                for (int i = 0; i < c.f.dim; i++) {
                    const float    wanted = flags[size_t(cell)] ? row[size_t(i)] : 0.0f;
                    const uint16_t got =
                        (value ? got_v : got_k)[size_t(((cell - first_cell) * store_heads + head) * c.f.dim + i)];
                    const double bound =
                        std::fabs(wanted) / 1024 + 1e-6; // two neighbouring f16: a fused product may round elsewhere
                    const double clamped = clamp_to_half(wanted);
                    run.tally.count(std::fabs(double(half_to_float(got)) - clamped) <= bound, where, half_to_float(got),
                                    clamped, bound);
                }
            }
        }
    }
}

std::vector<std::vector<uint8_t>> check_store(Run & run, const RowFormat & f) {
    StoreCase            c = make_store(f);
    DeviceHeads          heads(run.queue, std::vector<HeadLayout>(store_heads, c.layout), c.images);
    DeviceArray<float>   rows(run.queue, c.rows);
    DeviceArray<int32_t> places(run.queue, c.places);
    DeviceArray<int64_t> cells(run.queue, c.cells);
    CommitArgs           a = {};
    a.layer = {heads.data(), nullptr, nullptr, 1, store_heads, 1, c.layout.n_cells, c.layout.n_cells, n_patterns, f.dim, f.dim};
    a.cells = cells.data();
    a.staged_k             = rows.data();
    a.staged_v             = rows.data();
    a.token_place          = places.data();
    const GpuLaunch launch = {GpuKernel::store, {n_patterns, store_heads, 2}, &a};
    run.tally.count(run.queue.device->launch(run.queue.queue, launch) == gpu_ok, "store " + name_of(f));
    run.tally.take(*run.report, "store " + name_of(f));
    store_plain(c);
    std::vector<std::vector<uint8_t>> images;
    for (int head = 0; head < store_heads; head++) {
        images.push_back(heads.image(head));
        const std::string where = "store " + name_of(f) + " head " + std::to_string(head);
        for (size_t i = 0; i < images.back().size(); i++) {
            run.tally.count(images.back()[i] == c.images[size_t(head)][i], where, images.back()[i], c.images[size_t(head)][i]);
        }
    }
    check_load(run, c, heads);
    return images;
}

// --- attention ------------------------------------------------------------------------------------------------------------------

struct Attended {
    std::vector<float> out, m, l, share, kept;
    bool               operator==(const Attended & o) const {
        const auto same = [](const std::vector<float> & a, const std::vector<float> & b) {
            return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
        };
        return same(out, o.out) && same(m, o.m) && same(l, o.l) && same(share, o.share) && same(kept, o.kept);
    }
};

constexpr float canary = -12345.0f;

// The case as one KV head of one stream. Its staged rows are the micro-batch; its queries, which may be more, are counted as tokens too. fast:
// by the kernels for groups of 64, which do not know others.
Attended attend(Run & run, const AttentionCase & c, int n_staged, bool fast) {
    const GpuQueue &   q        = run.queue;
    const int          n_tokens = std::max(n_staged, c.rows.n_tokens), group = c.rows.n_rows / c.rows.n_tokens;
    const int          dim_k = c.head.k.dim, dim_v = c.head.v.dim, n_kept = c.head.n_slots + c.head.n_exact + n_tokens;
    const int          n_chunks = (c.n_kv + 255) / 256; // of two tiles
    const HeadLayout   layout   = {c.head.k, c.head.v, c.head.n_cells, c.head.n_slots, c.head.n_exact};
    const DeviceHeads  heads(q, {layout}, {c.image()});
    std::vector<float> queries(size_t(group) * n_tokens * dim_k), k(size_t(n_tokens) * dim_k), v(size_t(n_tokens) * dim_v);
    for (int row = 0; row < c.rows.n_rows; row++) {
        std::copy_n(c.rows.q + row * dim_k, dim_k,
                    queries.data() + (row / c.rows.n_tokens * n_tokens + row % c.rows.n_tokens) * dim_k);
    }
    for (int i = 0; i < n_staged; i++) {
        std::copy_n(c.staged.k + i * c.staged.k_stride, dim_k, k.data() + i * dim_k);
        std::copy_n(c.staged.v + i * c.staged.v_stride, dim_v, v.data() + i * dim_v);
    }
    const size_t       n_rows = size_t(c.rows.n_rows);
    DeviceArray<float> d_q(q, queries), d_k(q, k), d_v(q, v), slope(q, std::vector<float>(c.rows.slope, c.rows.slope + group));
    DeviceArray<int32_t> place(q, std::vector<int32_t>(c.index.place, c.index.place + c.n_kv)),
        staged(q, std::vector<int32_t>(c.index.staged, c.index.staged + c.n_kv));
    DeviceArray<uint16_t> mask(q, std::vector<uint16_t>(c.rows.mask, c.rows.mask + size_t(c.rows.n_tokens) * c.n_kv));
    DeviceArray<float>    part_m(q, n_chunks * n_rows), part_l(q, n_chunks * n_rows), part_acc(q, n_chunks * n_rows * dim_v),
        kept(q, std::vector<float>(n_rows * n_kept, canary)), m(q, n_rows), l(q, n_rows), share(q, n_rows),
        out(q, std::vector<float>(n_rows * dim_v, canary));
    AttendArgs a  = {};
    a.layer       = {heads.data(), staged.data(), place.data(), 1, 1, group, c.n_kv, c.n_kv, n_tokens, dim_k, dim_v};
    a.q           = d_q.data();
    a.mask        = mask.data();
    a.slope       = slope.data();
    a.staged_k    = d_k.data();
    a.staged_v    = d_v.data();
    a.part_m      = part_m.data();
    a.part_l      = part_l.data();
    a.part_acc    = part_acc.data();
    a.kept        = kept.data();
    a.mask_token  = c.n_kv;
    a.n_queries   = c.rows.n_tokens;
    a.n_chunks    = n_chunks;
    a.chunk_cells = 256;
    a.n_kept      = n_kept;
    a.softcap     = c.rows.softcap;
    a.code_group  = fast ? c.head.k.group : 0;
    MergeArgs b = {part_m.data(), part_l.data(),   part_acc.data(), nullptr, out.data(), m.data(), l.data(), share.data(), 1, 1,
                   group,         c.rows.n_tokens, n_chunks,        dim_v,   dim_v,      0};
    run.tally.count(gpu_attend(q, a) == gpu_ok && gpu_merge(q, b) == gpu_ok, c.name);
    return {out.read(), m.read(), l.read(), share.read(), kept.read()};
}

bool is_weight(float x) { return x > 0.0f; }

void compare(Run & run, AttentionCase & c, const Attended & got, int n_staged, bool fast) {
    const CaseBound    bound(c);
    const int          n_rows = c.rows.n_rows, dim = c.head.v.dim, n_tokens = std::max(n_staged, c.rows.n_tokens);
    std::vector<float> logits(size_t(n_rows) * c.n_kv), weights(logits), m(n_rows, 0.0f), l(m), acc(size_t(n_rows) * dim);
    plain_kernels.score(c.head, c.index, c.staged, c.rows, 0, c.n_kv, logits.data(), c.n_kv);
    plain_kernels.attend_few(c.head, c.index, c.staged, c.rows, 0, c.n_kv, weights.data(), c.n_kv,
                             {m.data(), l.data(), acc.data()});
    const int n_kept = int(got.kept.size()) / n_rows;
    for (int row = 0; row < n_rows; row++) {
        const double relative = bound.relative(row);
        const bool   any      = l[row] > 0.0f;
        const double lse      = any ? m[row] + std::log(double(l[row])) : 0,
                     got_lse  = any ? got.m[row] + std::log(double(got.l[row])) : 0;
        run.tally.count(std::fabs(lse - got_lse) <= relative && got.share[row] == (any ? 1.0f : 0.0f), c.name + " log sum",
                        got_lse, lse, relative);
        const auto   shares = weights.begin() + int64_t(row) * c.n_kv;
        const double top    = any ? *std::max_element(shares, shares + c.n_kv) / double(l[row]) : 0;
        const double words  = fast ? bound.two_bytes(top, int(std::count_if(shares, shares + c.n_kv, is_weight))) : 0;
        const int    group = row / c.rows.n_tokens, n_head = n_rows / c.rows.n_tokens;
        for (int i = 0; i < dim; i++) {
            const double wanted = any ? acc[size_t(row) * dim + i] / double(l[row]) : 0;
            const double found  = got.out[size_t((row % c.rows.n_tokens) * n_head + group) * dim + i];
            const double limit  = relative * bound.value + bound.decode + words;
            run.tally.count(std::fabs(found - wanted) <= limit, "output", found, wanted, limit);
        }
        std::vector<bool> written(size_t(n_kept), false);
        for (int cell = 0; cell < c.n_kv; cell++) {
            const int   place = c.index.place[cell], token = c.index.staged[cell];
            const int   at     = token >= 0   ? c.head.n_slots + c.head.n_exact + token
                                 : place >= 0 ? place
                                 : place < -1 ? c.head.n_slots - 2 - place
                                              : -1;
            const float wanted = logits[size_t(row) * c.n_kv + cell];
            if (at >= 0) {
                const float  found = got.kept[size_t(row) * n_kept + at];
                const double limit = wanted > masked_logit ? bound.logit[row] : 0;
                run.tally.count(std::fabs(double(found) - wanted) <= limit, "kept logit", found, wanted, limit);
                written[size_t(at)] = true;
            }
        }
        for (int at = 0; at < n_kept; at++) {
            run.tally.count(written[size_t(at)] || got.kept[size_t(row) * n_kept + at] == canary, "kept, not asked for");
        }
    }
    run.tally.count(n_tokens >= c.rows.n_tokens, c.name);
}

bool has_fast_kernel(const AttentionShape & shape) { return shape.k.group == 64; }

void check_attention(Run & run, AttentionCase & c, int seed, bool fast) {
    const std::string name     = c.name + (fast ? " fast" : "");
    int               n_staged = 0;
    for (int cell = 0; cell < c.n_kv; cell++) {
        n_staged = std::max(n_staged, c.index.staged[cell] + 1);
    }
    Attended first;
    for (TurnOrder order : {TurnOrder::forward, turn_orders[1 + seed % 3]}) {
        run.report->watch  = order == TurnOrder::forward; // once is enough, and takes most of the time
        run.report->order  = order;
        const Attended got = attend(run, c, n_staged, fast);
        run.tally.take(*run.report, name);
        if (order == TurnOrder::forward) {
            compare(run, c, got, n_staged, fast);
            first = got;
        }
        run.tally.count(got == first, name + ": another order of turns, other bits");
        if (run.quick) {
            break;
        }
    }
    run.report->watch = true;
}

int run_all(const GpuChoice & choice, EmulatorReport & report) {
    const bool quick = choice.quick;
    GpuTally   tally{choice.queue.device->name};
    Run        run    = {choice.queue, &report, tally, quick};
    int        number = 0;
    for (const RowFormat & format : all_formats()) {
        if (number++ % (quick ? 9 : 1) == 0) {
            std::vector<std::vector<uint8_t>> first;
            for (int turn = 0; turn < (number % 16 == 1 && !quick ? 4 : 1); turn++) {
                report.order      = turn_orders[(number + turn) % 4];
                const auto images = check_store(run, format);
                tally.count(first.empty() || first == images, "store: another order of turns, other bits");
                first = images;
            }
            tally.take(report, name_of(format));
        }
    }
    const int stored = tally.cases;
    for (const AttentionShape & shape : attention_shapes()) {
        const bool plain = !quick || shape.seed % 10 == 0;
        const bool fast  = has_fast_kernel(shape) && (!quick || shape.seed % 10 == 3); // groups of 32 have the tenth ones
        if (plain || fast) {
            AttentionCase c(shape);
            for (int i = plain ? 0 : 1; i < (fast ? 2 : 1); i++) {
                check_attention(run, c, shape.seed, i == 1);
            }
        }
    }
    std::printf("%s: %d comparisons of store and load, %d of attention, %d faults\n", tally.device.c_str(), stored,
                tally.cases - stored, tally.faults);
    return tally.faults ? 1 : 0;
}

} // namespace

} // namespace mikv

int main(int argc, char ** argv) {
    mikv::EmulatorReport  report;
    const mikv::GpuChoice choice(argc, argv, report);
    return choice.there ? mikv::run_all(choice, report) : 77;
}
