// A decoded token's part of a layer without a wait between its phases: threads meet once, at the end.
#include <algorithm>

#include "format/cell.h"
#include "store/step.h"

namespace mikv {

// llama.cpp pads the cells that attention looks at: how many there are up to the last one that some query sees, in whole tiles of 64.
int Step::seen_cells() const {
    int end = 0;
    for (int i = 0; i < shape_.n_stream * shape_.n_tokens; i++) {
        const uint16_t * mask = data_.mask + i / shape_.n_tokens * data_.mask_stream + i % shape_.n_tokens * data_.mask_token;
        int              last = shape_.n_kv;
        while (last > end && mask[last - 1] == hidden) {
            last--;
        }
        end = last;
    }
    return std::min(shape_.n_kv, std::max(1, (end + 63) / 64) * 64);
}

void Step::start() {
    if (!progress_) {
        progress_.reset(new Progress[size_t(n_heads())]);
    }
    reach_ = columns_.pooled ? columns_.n : seen_cells();
    for (int i = 0; i < n_heads(); i++) {
        Progress & head = progress_[size_t(i)];
        head.to_attend.store(n_chunks(), std::memory_order_relaxed);
        head.left.store(false, std::memory_order_relaxed);
        head.ended.store(false, std::memory_order_relaxed);
    }
    to_end_.store(n_heads(), std::memory_order_relaxed);
}

void Step::work(int item) {
    if (item < attend_items()) {
        attend_item(item);
        return;
    }
    Progress & head = progress_[size_t(item - attend_items())];
    head.left       = true;
    if (head.to_attend == 0) {
        end_head(item - attend_items());
    }
}

void Step::attend_item(int item) {
    const int head_item = item / n_chunks(), chunk = item % n_chunks();
    index_chunk(head_item, chunk_cells(chunk));
    attend_chunk(head_item, chunk);
    Progress & head = progress_[size_t(head_item)];
    if (--head.to_attend == 0 && head.left) {
        end_head(head_item);
    }
}

// Once: whoever attended last and whoever came to commit may both find that it is time.
void Step::end_head(int head_item) {
    if (progress_[size_t(head_item)].ended.exchange(true)) {
        return;
    }
    commit(head_item);
    if (--to_end_ == 0 && data_.copy) {
        std::copy_n(data_.out, size_t(shape_.n_stream) * shape_.n_tokens * shape_.n_head * cache_.shape().head_dim_v,
                    data_.copy);
    }
}

} // namespace mikv
