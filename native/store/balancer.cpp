#include "store/balancer.h"

namespace mikv {

namespace {

// What the channels of one head reach in the micro-batch, in the model's space; queries of all heads that share the KV head.
void make(Cache & cache, const StepShape & shape, const StepData & data, int head_item, uint16_t * balancer) {
    const int          n_head_kv = cache.shape().n_head_kv, dim = cache.shape().head_dim_k;
    const int          stream = head_item / n_head_kv, h = head_item % n_head_kv, group = shape.n_head / n_head_kv;
    const Balance      balance = Balance(cache.config().balance);
    std::vector<float> q(static_cast<size_t>(dim)), k(static_cast<size_t>(dim));
    const Transform    none = {dim, dim, false, nullptr},
                    none_v  = {cache.shape().head_dim_v, cache.shape().head_dim_v, false, nullptr};
    const int        first  = stream * shape.n_tokens;
    const StagedRows rows   = data.rows.k ? cache.staging().rows(data.rows, first, shape.n_tokens, h, none, none_v)
                                          : cache.staging().rows(first, shape.n_tokens, h, none, none_v);
    for (int t = 0; t < shape.n_tokens; t++) {
        add_reach(balance, rows.k + t * rows.k_stride, dim, k.data());
        for (int i = 0; i < group; i++) {
            const char * row =
                data.q + stream * data.q_stream_bytes + (h * group + i) * data.q_head_bytes + t * data.q_token_bytes;
            add_reach(balance, reinterpret_cast<const float *>(row), dim, q.data());
        }
    }
    make_balancer(balance, {q.data(), k.data()}, int64_t(shape.n_tokens) * group, shape.n_tokens, dim, balancer);
}

} // namespace

void settle_balancer(Cache & cache, const StepShape & shape, const StepData & data, int head_item) {
    const int  n_head_kv = cache.shape().n_head_kv;
    const Head head      = cache.head(shape.index, shape.first_stream + head_item / n_head_kv, head_item % n_head_kv);
    if (!head.balancer || !shape.staged) {
        return;
    }
    std::lock_guard<std::mutex> lock(cache.balancing);
    if (!head.state.settled && shape.n_tokens >= enough_tokens) {
        make(cache, shape, data, head_item, head.balancer);
        head.state.balanced = true;
    }
    head.state.settled = true;
}

} // namespace mikv
