// A cache whose micro-batches the GPU kernels work off, beside the CPU's cache with the same input: what is known of the cells, who has a slot, every
// byte stored, and attention's output must be the same after each micro-batch.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>

#include "backend/cpu/kernels.h"
#include "gpu_device.h"
#include "gpu_scene.h"
#include "store/alibi.h"
#include "store/gpu_policy.h"
#include "store/step.h"

namespace mikv {

namespace {

std::shared_ptr<Cache> make_cache(const Setting & s) {
    mikv_config config;
    mikv_config_default(&config);
    config.refined_share = 0.2f;
    config.k_bits        = 3;
    config.v_bits        = 2;
    config.refined_bits  = 6;
    config.sinks         = 3;
    config.window        = s.window;
    config.rotate        = s.rotate;
    config.end_points    = s.end_points;
    config.center_keys   = 1;
    std::snprintf(config.policy, sizeof(config.policy), "%s", s.policy);
    mikv_shape shape = {};
    shape.n_layer    = 1;
    shape.n_head_kv  = n_head_kv;
    shape.n_cells    = n_cells;
    shape.n_stream   = s.n_stream;
    shape.head_dim_k = shape.head_dim_v = s.head_dim;
    std::shared_ptr<Cache> cache;
    return Cache::create(config, shape, {5}, &cache) == MIKV_OK ? cache : nullptr;
}

std::vector<HeadLayout> layouts_of(Cache & cache) {
    std::vector<HeadLayout> layouts;
    for (int i = 0; i < cache.shape().n_stream * n_head_kv; i++) {
        const HeadView h = cache.head(0, i / n_head_kv, i % n_head_kv).view;
        layouts.push_back({h.k, h.v, h.n_cells, h.n_slots, h.n_exact});
    }
    return layouts;
}

std::vector<std::vector<uint8_t>> images_of(Cache & cache) {
    std::vector<std::vector<uint8_t>> images;
    const std::vector<HeadLayout>     layouts = layouts_of(cache);
    for (int i = 0; i < int(layouts.size()); i++) {
        const uint8_t * memory = reinterpret_cast<uint8_t *>(cache.head(0, i / n_head_kv, i % n_head_kv).view.k_params);
        images.push_back({memory, memory + layouts[size_t(i)].total_bytes()});
    }
    return images;
}

// The device's side: what a host does.
class DeviceCache {
public:
    DeviceCache(const GpuQueue & queue, Cache & cache, const Setting & s)
        : queue_(queue), cache_(cache), s_(s), heads(queue, layouts_of(cache), images_of(cache)), born(queue, cells()),
          seen(queue, cells()), flags(queue, cells()), staged(queue, std::vector<int32_t>(cells(), -1)),
          clock(queue, size_t(s.n_stream)), sinks_(queue, std::vector<float>(sink_logits, sink_logits + 32)),
          slope_(queue, slopes(s)) {}

    // few: the output too.
    std::vector<float> run(Input & in, bool few);

private:
    size_t                    cells() const { return size_t(s_.n_stream) * n_cells; }
    static std::vector<float> slopes(const Setting & s) {
        std::vector<float> slope;
        for (int head = 0; head < n_head_kv * s.group; head++) {
            slope.push_back(alibi_slope(s.max_bias, n_head_kv * s.group, head));
        }
        return slope;
    }
    EnterArgs enter_args(const DeviceArray<float> & in, float * out, int n_heads, bool query, int per_stream) const;

    GpuQueue        queue_;
    Cache &         cache_;
    const Setting & s_;

public:
    DeviceHeads            heads;
    DeviceArray<uint32_t>  born, seen;
    DeviceArray<uint8_t>   flags;
    DeviceArray<int32_t>   staged;
    DeviceArray<CellClock> clock;

private:
    DeviceArray<float> sinks_, slope_;
};

EnterArgs DeviceCache::enter_args(const DeviceArray<float> & in, float * out, int n_heads, bool query, int per_stream) const {
    EnterArgs a    = {};
    a.in           = reinterpret_cast<const uint8_t *>(in.data());
    a.out          = out;
    a.heads        = heads.data();
    a.head_bytes   = int64_t(s_.head_dim) * 4;
    a.token_bytes  = a.head_bytes * n_heads;
    a.stream_bytes = a.token_bytes * per_stream;
    a.n_stream     = s_.n_stream;
    a.n_tokens     = per_stream;
    a.n_heads      = n_heads;
    a.group        = query ? s_.group : 1;
    a.dim          = s_.head_dim;
    a.row          = row_dim(s_.head_dim);
    a.query        = query;
    a.rotate       = s_.rotate;
    a.scale        = 1.0f / std::sqrt(float(s_.head_dim));
    return a;
}

std::vector<float> DeviceCache::run(Input & in, bool few) {
    const std::vector<int> tokens =
        probe_tokens(cache_.policy().policy->probes, in.per_stream, clock.read()[0].now + uint32_t(in.per_stream));
    const int             n_queries = few ? in.per_stream : int(tokens.size()), row = row_dim(s_.head_dim);
    const HeadView        h     = cache_.head(0, 0, 0).view;
    const ScratchShape    shape = {s_.n_stream, n_head_kv, s_.group,  in.per_stream, n_queries, in.n_kv,
                                   row,         row,       h.n_slots, h.n_exact,     few,       2};
    DeviceArray<uint8_t>  memory(queue_, lay_out_scratch(shape, nullptr).size_bytes);
    const Scratch         t = lay_out_scratch(shape, memory.data());
    DeviceArray<int64_t>  d_cells(queue_, in.cells);
    DeviceArray<uint16_t> mask(queue_, in.mask);
    DeviceArray<float>    k(queue_, in.k), v(queue_, in.v), q(queue_, in.q), out(queue_, in.out.size());
    DeviceArray<int32_t>  d_tokens(queue_, std::vector<int32_t>(tokens.begin(), tokens.end()));
    const int64_t         mask_stream = int64_t(in.per_stream) * in.n_kv;
    const BeginArgs       begin       = {d_cells.data(),
                                         mask.data(),
                                         born.data(),
                                         seen.data(),
                                         flags.data(),
                                         staged.data(),
                                         clock.data(),
                                         t.last,
                                         in.n_kv,
                                         mask_stream,
                                         0,
                                         s_.n_stream,
                                         in.per_stream,
                                         n_cells,
                                         in.n_kv,
                                         cache_.config().sinks,
                                         cache_.config().window};
    int                   error       = gpu_begin(queue_, begin);
    error |= gpu_enter(queue_, enter_args(k, t.staged_k, n_head_kv, false, in.per_stream));
    error |= gpu_enter(queue_, enter_args(v, t.staged_v, n_head_kv, false, in.per_stream));
    error |= gpu_enter(queue_, enter_args(q, t.q, n_head_kv * s_.group, true, in.per_stream));
    const LayerArgs layer = {heads.data(), staged.data(), t.place,       s_.n_stream, n_head_kv, s_.group,
                             in.n_kv,      n_cells,       in.per_stream, row,         row};
    error |= gpu_index(queue_, layer);
    const AttendArgs attend = {layer,
                               t.q,
                               mask.data(),
                               slope_.data(),
                               few ? nullptr : d_tokens.data(),
                               t.staged_k,
                               t.staged_v,
                               t.part_m,
                               t.part_l,
                               t.part_acc,
                               t.kept,
                               in.n_kv,
                               mask_stream,
                               n_queries,
                               t.n_chunks,
                               t.chunk_cells,
                               t.n_kept,
                               s_.softcap,
                               0}; // the plain kernels: others round
    error |= gpu_attend(queue_, attend);
    const MergeArgs merge = {t.part_m,    t.part_l,    t.part_acc, s_.sinks ? sinks_.data() : nullptr,
                             out.data(),  t.final_m,   t.final_l,  t.share,
                             s_.n_stream, n_head_kv,   s_.group,   n_queries,
                             t.n_chunks,  s_.head_dim, row,        s_.rotate};
    error |= gpu_merge(queue_, merge);
    CommitArgs commit     = {};
    commit.layer          = layer;
    commit.cells          = d_cells.data();
    commit.born           = born.data();
    commit.seen           = seen.data();
    commit.flags          = flags.data();
    commit.clock          = clock.data();
    commit.staged_k       = t.staged_k;
    commit.staged_v       = t.staged_v;
    commit.kept           = t.kept;
    commit.final_m        = t.final_m;
    commit.final_l        = t.final_l;
    commit.share          = t.share;
    commit.part_mass      = t.part_mass;
    commit.token_mass     = t.token_mass;
    commit.token_place    = t.token_place;
    commit.waiting        = t.waiting;
    commit.key            = t.key;
    commit.n_rows         = s_.group * n_queries;
    commit.n_kept         = t.n_kept;
    commit.n_score_blocks = t.n_score_blocks;
    commit.n_candidates   = t.n_candidates;
    commit.center_keys    = 1;
    commit.layer_number   = cache_.layer_number(0);
    commit.mass_scale     = float(in.per_stream) / float(n_queries);
    error |= gpu_policy(cache_.policy(), &commit) ? gpu_commit(queue_, commit) : 1;
    return error ? std::vector<float>() : out.read();
}

// --- comparison -----------------------------------------------------------------------------------------------------------------

std::map<uint32_t, int> owners(const uint32_t * cell, int n) {
    std::map<uint32_t, int> of;
    for (int i = 0; i < n; i++) {
        if (cell[i] != free_slot) {
            of[cell[i]] = i;
        }
    }
    return of;
}

bool same_cells(const std::map<uint32_t, int> & a, const std::map<uint32_t, int> & b) {
    return a.size() == b.size() &&
           std::equal(a.begin(), a.end(), b.begin(), [](const auto & x, const auto & y) { return x.first == y.first; });
}

bool close(double got, double wanted) { return std::fabs(got - wanted) <= 1e-4 * (std::fabs(wanted) + 1e-2); }

void compare_head(const Head & cpu, const HeadView & gpu, const HeadTally & tally, const std::string & where, GpuTally & t) {
    const HeadView & h    = cpu.view;
    const auto       same = [&](const void * a, const void * b, size_t n, const char * what) {
        t.count(std::memcmp(a, b, n) == 0, where + ": " + what);
    };
    same(gpu.k_params, h.k_params, 2 * size_t(h.n_cells) * h.k.n_groups(), "k_params");
    same(gpu.v_params, h.v_params, 2 * size_t(h.n_cells) * h.v.n_groups(), "v_params");
    same(gpu.k_base, h.k_base, size_t(h.n_cells) * h.k.base_bytes(), "k_base");
    same(gpu.v_base, h.v_base, size_t(h.n_cells) * h.v.base_bytes(), "v_base");
    same(gpu.k_mean, h.k_mean, 2 * size_t(h.n_blocks()) * h.k.dim, "k_mean");
    const auto slots = owners(h.slot_cell, h.n_slots), found = owners(gpu.slot_cell, gpu.n_slots);
    const auto exact = owners(h.exact_cell, h.n_exact), found_exact = owners(gpu.exact_cell, gpu.n_exact);
    t.count(same_cells(slots, found), where + ": cells with a slot", double(found.size()), double(slots.size()));
    t.count(same_cells(exact, found_exact), where + ": exact cells", double(found_exact.size()), double(exact.size()));
    for (const auto & slot : slots) {
        const auto other = found.find(slot.first);
        if (other != found.end()) {
            const int a = slot.second, b = other->second, k = h.k.refinement_bytes(), v = h.v.refinement_bytes();
            same(gpu.k_refined + b * k, h.k_refined + a * k, size_t(k), "k_refined");
            same(gpu.v_refined + b * v, h.v_refined + a * v, size_t(v), "v_refined");
            t.count(close(gpu.slot_mass[b], h.slot_mass[a]), where + ": score", gpu.slot_mass[b], h.slot_mass[a]);
        }
    }
    for (const auto & row : exact) {
        const auto other = found_exact.find(row.first);
        if (other != found_exact.end()) {
            same(gpu.k_exact + other->second * h.k.dim, h.k_exact + row.second * h.k.dim, 2 * size_t(h.k.dim), "k_exact");
            same(gpu.v_exact + other->second * h.v.dim, h.v_exact + row.second * h.v.dim, 2 * size_t(h.v.dim), "v_exact");
        }
    }
    const HeadState & s = cpu.state;
    t.count(tally.n_free == s.n_free && tally.n_refined == s.n_refined && tally.n_exact == s.n_exact, where + ": counts",
            tally.n_free, s.n_free);
    t.count(tally.mean_count == s.mean_count, where + ": keys of the next mean", tally.mean_count, s.mean_count);
    t.count(tally.demotions == s.demotions, where + ": demotions", double(tally.demotions), double(s.demotions));
    for (int i = 0; i < 3; i++) {
        t.count(std::fabs(double(tally.mass[i]) / mass_unit - s.mass[i]) <= 1e-3 * (s.mass[i] + 1),
                where + ": mass by precision", double(tally.mass[i]) / mass_unit, s.mass[i]);
    }
}

void compare_cells(Cache & cache, const DeviceCache & device, const std::string & where, GpuTally & t) {
    const auto born  = device.born.read();
    const auto seen  = device.seen.read();
    const auto flags = device.flags.read();
    const auto rows  = device.staged.read();
    for (int i = 0; i < cache.shape().n_stream * n_cells; i++) {
        const CellTable & table = cache.cells(i / n_cells);
        const int         cell  = i % n_cells;
        const size_t      at    = size_t(i);
        if (table.holds(cell)) {
            t.count(born[at] == table.born(cell), where + ": born", born[at], table.born(cell));
            t.count(((flags[at] & cell_sink) != 0) == table.is_sink(cell), where + ": sink");
            t.count(((flags[at] & cell_recent) != 0) == table.is_recent(cell), where + ": recent", cell);
            const uint32_t batch = device.clock.read()[at / n_cells].batch;
            t.count((batch - seen[at] > forgotten_after) == table.is_forgotten(cell), where + ": forgotten", cell);
        }
        t.count(((flags[at] & cell_holds) != 0) == table.holds(cell), where + ": holds", cell);
        t.count(rows[at] == table.staged()[cell], where + ": staged", rows[at], table.staged()[cell]);
    }
}

void check(const GpuQueue & queue, const Setting & s, int n_batches, GpuTally & t, EmulatorReport & report) {
    const std::shared_ptr<Cache> cache = make_cache(s);
    if (!cache) {
        t.count(false, std::string(s.policy) + ": no cache");
        return;
    }
    DeviceCache        device(queue, *cache, s);
    std::vector<Scene> scenes;
    for (int stream = 0; stream < s.n_stream; stream++) {
        scenes.emplace_back(uint64_t(stream) + 3);
    }
    Random random(11);
    for (int batch = 0; batch < n_batches && t.faults == 0; batch++) {
        const int  per_stream = batch % 3 == 0 ? 25 + random.below(most_tokens - 25) : batch % 3 == 1 ? 1 : 1 + random.below(3);
        const bool few        = per_stream * s.group <= 24 || per_stream == 1;
        const std::string where = std::string(s.policy) + " batch " + std::to_string(batch);
        Input             in    = make_input(s, scenes, per_stream, random);
        const mikv_step   step  = step_of(s, in);
        report.order            = turn_orders[batch % 4];
        t.count(run_step(*cache, 0, step, 1) == MIKV_OK, where + ": step");
        const std::vector<float> out = device.run(in, few);
        t.take(report, where);
        t.count(out.size() == in.out.size(), where + ": launches");
        for (size_t i = 0; few && i < out.size() && t.faults < 20; i++) {
            t.count(std::fabs(double(out[i]) - in.out[i]) <= 2e-5, where + ": output", out[i], in.out[i], 2e-5);
        }
        compare_cells(*cache, device, where, t);
        for (int i = 0; i < s.n_stream * n_head_kv; i++) {
            std::vector<uint8_t> image = device.heads.image(i);
            compare_head(cache->head(0, i / n_head_kv, i % n_head_kv), view_head(layouts_of(*cache)[size_t(i)], image.data()),
                         device.heads.tally(i), where + " head " + std::to_string(i), t);
        }
    }
    const HeadState & state = cache->head(0, 0, 0).state;
    t.count(state.demotions > 0 && state.n_exact > 0 && state.n_refined > 0, std::string(s.policy) + ": too easy a case");
}

} // namespace

} // namespace mikv

int main(int argc, char ** argv) {
    mikv::EmulatorReport  report;
    const mikv::GpuChoice choice(argc, argv, report);
    if (!choice.there) {
        return 77;
    }
    mikv::GpuTally tally{choice.queue.device->name};
    mikv::kernels_select("plain"); // others round queries to 8 bits
    for (const mikv::Setting & setting : mikv::settings) {
        mikv::check(choice.queue, setting, choice.quick ? 6 : 12, tally, report);
    }
    std::printf("%s: %d comparisons of caches, %d faults\n", tally.device.c_str(), tally.cases, tally.faults);
    return tally.faults ? 1 : 0;
}
