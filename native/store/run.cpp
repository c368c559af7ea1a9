// A step without llama.cpp: the same phases on threads of our own.
#include <atomic>
#include <functional>
#include <thread>

#include "store/error.h"
#include "store/step.h"

namespace mikv {

namespace {

void run_items(int n_items, int n_threads, const std::function<void(int)> & work) {
    std::atomic<int> next{0};
    const auto       worker = [&] {
        for (int item = next++; item < n_items; item = next++) {
            work(item);
        }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < n_threads && i < n_items; i++) {
        threads.emplace_back(worker);
    }
    worker();
    for (std::thread & thread : threads) {
        thread.join();
    }
}

mikv_status check_step(const Cache & cache, int index, const mikv_step & s) {
    const mikv_shape & c = cache.shape();
    if (index < 0 || index >= c.n_layer) {
        return fail(MIKV_ERROR_NOT_FOUND, "layer index %d: this cache has %d layers", index, c.n_layer);
    }
    if (s.n_stream < 1 || s.first_stream < 0 || s.first_stream + s.n_stream > c.n_stream || s.n_tokens < 1 ||
        s.n_tokens % s.n_stream) {
        return fail(MIKV_ERROR_ARGUMENT, "%d tokens in streams %d to %d: give each of the cache's %d streams the same number",
                    s.n_tokens, s.first_stream, s.first_stream + s.n_stream - 1, c.n_stream);
    }
    if (s.n_kv < 1 || s.n_kv > c.n_cells || s.n_head < 1 || s.n_head % c.n_head_kv) {
        return fail(MIKV_ERROR_ARGUMENT, "n_kv %d and n_head %d: use up to %d cells and a multiple of %d heads", s.n_kv,
                    s.n_head, c.n_cells, c.n_head_kv);
    }
    const int per_stream = s.n_tokens / s.n_stream;
    for (int i = 0; i < s.n_tokens; i++) {
        const int64_t first = int64_t(s.first_stream + i / per_stream) * c.n_cells;
        if (s.cells[i] < first || s.cells[i] >= first + c.n_cells) {
            return fail(MIKV_ERROR_ARGUMENT, "cell %lld of token %d lies outside its stream", (long long)s.cells[i], i);
        }
    }
    return MIKV_OK;
}

} // namespace

mikv_status run_step(Cache & cache, int index, const mikv_step & s, int n_threads) {
    if (mikv_status status = check_step(cache, index, s)) {
        return status;
    }
    const mikv_shape & c     = cache.shape();
    const StepShape    shape = {index, s.n_stream, s.first_stream, s.n_tokens / s.n_stream, s.n_kv, s.n_head, true};
    cache.bring_home(all_layers, true);
    Step step(cache, shape, n_threads);
    if (!step.reserve()) {
        return fail(MIKV_ERROR_MEMORY, "no memory for a micro-batch of %d tokens: use a smaller one", s.n_tokens);
    }
    cache.staging().open();
    for (int i = 0; i < s.n_tokens; i++) {
        cache.staging().put(false, i, s.k + int64_t(i) * c.n_head_kv * c.head_dim_k);
        cache.staging().put(true, i, s.v + int64_t(i) * c.n_head_kv * c.head_dim_v);
    }
    StepData data;
    data.q              = reinterpret_cast<const char *>(s.q);
    data.q_head_bytes   = int64_t(sizeof(float)) * c.head_dim_k;
    data.q_token_bytes  = data.q_head_bytes * s.n_head;
    data.q_stream_bytes = data.q_token_bytes * shape.n_tokens;
    data.mask           = s.mask;
    data.mask_token     = s.n_kv;
    data.mask_stream    = int64_t(s.n_kv) * shape.n_tokens;
    data.sinks          = s.sinks;
    data.out            = s.out;
    data.scale          = s.scale;
    data.max_bias       = s.max_bias;
    data.softcap        = s.logit_softcap;
    step.bind(data);
    step.bind_cells(s.cells);
    Step::begin_batch(cache, shape, s.cells, data);
    if (step.has_one_phase()) {
        step.start();
        run_items(step.items(), n_threads, [&](int i) { step.work(i); });
        return succeed();
    }
    run_items(step.index_items(), n_threads, [&](int i) { step.index(i); });
    run_items(step.attend_items(), n_threads, [&](int i) { step.attend(i); });
    run_items(step.probe_items(), n_threads, [&](int i) { step.probe(i); });
    run_items(step.commit_items(), n_threads, [&](int i) { step.commit(i); });
    return succeed();
}

} // namespace mikv
