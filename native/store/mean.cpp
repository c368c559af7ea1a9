#include "store/mean.h"

#include <algorithm>

#include "codec/half.h"
#include "kernel/batch.h"

namespace mikv {

namespace {

constexpr int enough_rows   = 32; // a block's own mean, if so many of its keys are at hand
constexpr int enough_before = 8;  // else the mean of the keys before, if there are so many

void set_mean(const Head & head, int block, const float * sum, int count) {
    uint16_t * mean = head.view.k_mean + size_t(block) * head.view.k.dim;
    for (int i = 0; i < head.view.k.dim; i++) {
        mean[i] = half_nearest(sum[i] / float(count));
    }
    head.has_mean[block] = 1;
}

void add_key(const Head & head, const float * key, float * sum) {
    for (int i = 0; i < head.view.k.dim; i++) {
        sum[i] += key[i];
    }
}

// Do the batch's rows of this block replace everything that the block holds?
bool replaces_block(const HeadView & h, const CellTable & table, int block, int n_in_batch) {
    int n_held = 0;
    for (int row = block * block_cells; row < std::min(h.n_cells, (block + 1) * block_cells); row++) {
        n_held += h.pooled ? h.row_cell[row] != free_slot : table.holds(row);
    }
    return n_in_batch >= n_held;
}

} // namespace

void update_means(Head & head, const CellTable & table, const int32_t * place, const int * rows, int n, const float * keys,
                  int64_t stride, bool renew) {
    const int          dim = head.view.k.dim;
    std::vector<float> own(dim);
    for (int begin = 0, end = 0; begin < n; begin = end) {
        const int block = rows[begin] / block_cells;
        int       count = 0;
        std::fill(own.begin(), own.end(), 0.0f);
        for (end = begin; end < n && rows[end] / block_cells == block; end++) {
            if (head.view.exact_of(place[rows[end]]) < 0) {
                add_key(head, keys + end * stride, own.data());
                count++;
            }
        }
        if (count == 0) {
            continue;
        }
        const bool fresh = renew || count >= enough_rows ? replaces_block(head.view, table, block, end - begin) : false;
        if (!head.has_mean[block] || fresh) {
            HeadState & state = head.state;
            if (count >= enough_rows || (fresh && renew)) {
                set_mean(head, block, own.data(), count);
            } else if (state.mean_count >= enough_before) {
                set_mean(head, block, head.mean_sum, state.mean_count);
            } else if (block > 0 && head.has_mean[block - 1]) {
                std::copy_n(head.view.k_mean + size_t(block - 1) * dim, dim, head.view.k_mean + size_t(block) * dim);
                head.has_mean[block] = 1;
            } else {
                set_mean(head, block, own.data(), count);
            }
            state.mean_count = 0;
            std::fill(head.mean_sum, head.mean_sum + dim, 0.0f);
        }
        add_key(head, own.data(), head.mean_sum);
        head.state.mean_count += count;
    }
}

} // namespace mikv
