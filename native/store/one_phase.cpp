// A decoded token's part of a layer without a wait between its phases: threads meet once, at the end.
#include <algorithm>

#include "store/step.h"

namespace mikv {

void Step::start() {
    if (!left_) {
        left_.reset(new std::atomic<int>[size_t(n_heads()) + 1]);
    }
    for (int i = 0; i < n_heads(); i++) {
        left_[size_t(i)].store(n_chunks(), std::memory_order_relaxed);
    }
    left_[size_t(n_heads())].store(n_heads(), std::memory_order_relaxed);
}

void Step::work(int item) {
    const int head_item = item / n_chunks(), chunk = item % n_chunks();
    index_chunk(head_item, chunk_cells(chunk));
    attend_chunk(head_item, chunk);
    if (left_[size_t(head_item)].fetch_sub(1, std::memory_order_acq_rel) > 1) {
        return;
    }
    commit(head_item);
    if (left_[size_t(n_heads())].fetch_sub(1, std::memory_order_acq_rel) == 1 && data_.copy) {
        std::copy_n(data_.out, size_t(shape_.n_stream) * shape_.n_tokens * shape_.n_head * cache_.shape().head_dim_v,
                    data_.copy);
    }
}

} // namespace mikv
