#include "store/balancer.h"

#include "store/channels.h"

namespace mikv {

namespace {

// What the channels of one head reach in the micro-batch, in the model's space; queries of all heads that share the KV head.
void make(Cache & cache, const StepShape & shape, const StepData & data, int head_item, uint16_t * balancer) {
    const int          n_head_kv = cache.shape().n_head_kv, dim = cache.shape().head_dim_k;
    const int          stream = head_item / n_head_kv, h = head_item % n_head_kv, group = shape.n_head / n_head_kv;
    const Balance      balance = Balance(cache.config().balance);
    std::vector<float> q(static_cast<size_t>(dim)), k(static_cast<size_t>(dim));
    Sample             sample{dim, {}, {}};
    const bool         factors = balance == Balance::largest || balance == Balance::damped;
    const Transform    none    = {dim, dim, false, nullptr},
                    none_v     = {cache.shape().head_dim_v, cache.shape().head_dim_v, false, nullptr};
    const int        first     = stream * shape.n_tokens;
    const StagedRows rows      = data.rows.k ? cache.staging().rows(data.rows, first, shape.n_tokens, h, none, none_v)
                                             : cache.staging().rows(first, shape.n_tokens, h, none, none_v);
    for (int t = 0; t < shape.n_tokens; t++) {
        const float * key = rows.k + t * rows.k_stride;
        if (factors) {
            add_reach(balance, key, dim, k.data());
        } else {
            sample.k.insert(sample.k.end(), key, key + dim);
        }
        for (int i = 0; i < group; i++) {
            const float * row = reinterpret_cast<const float *>(data.q + stream * data.q_stream_bytes +
                                                                (h * group + i) * data.q_head_bytes + t * data.q_token_bytes);
            if (factors) {
                add_reach(balance, row, dim, q.data());
            } else {
                sample.q.insert(sample.q.end(), row, row + dim);
            }
        }
    }
    if (is_order(balance)) {
        make_order(balance, sample, balancer);
    } else if (balance == Balance::alike) {
        make_alike(sample, balancer);
    } else if (balance == Balance::basis) {
        make_basis(sample, reinterpret_cast<float *>(balancer));
    }
    if (!factors) {
        return;
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
