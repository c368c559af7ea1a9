#include "ggml/work.h"

#include <algorithm>
#include <cstring>

#include "store/commit.h"

namespace mikv {

void HostData::fetch(const ggml_tensor * t) {
    std::vector<char> & bytes = copies_[t];
    bytes.resize(ggml_nbytes(t));
    ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());
}

void read_cells(LayerWork & layer, const char * bytes) {
    const int64_t n = layer.cells->ne[0];
    layer.cell_ids.resize(size_t(n));
    for (int64_t i = 0; i < n; i++) {
        const char * at = bytes + i * int64_t(layer.cells->nb[0]);
        if (layer.cells->type == GGML_TYPE_I64) {
            std::memcpy(&layer.cell_ids[size_t(i)], at, sizeof(int64_t));
        } else {
            int32_t narrow;
            std::memcpy(&narrow, at, sizeof(narrow));
            layer.cell_ids[size_t(i)] = narrow;
        }
    }
}

void LayerWork::open(bool mask_to_come) {
    step->bind_cells(cell_ids.data());
    if (begins && !mask_to_come) {
        Step::begin_batch(cache(), shape, cell_ids.data(), data);
    }
}

RowSource LayerWork::source(const char * key_bytes, const char * value_bytes) const {
    RowSource rows;
    rows.k       = keys.block ? reinterpret_cast<const char *>(keys.values.data()) : key_bytes;
    rows.v       = values.block ? reinterpret_cast<const char *>(values.values.data()) : value_bytes;
    rows.k_block = keys.block;
    rows.v_block = values.block;
    rows.k_bytes = int64_t(key_rows->nb[1]);
    rows.v_bytes = int64_t(value_rows->nb[1]);
    rows.k_half  = key_rows->type == GGML_TYPE_F16;
    rows.v_half  = value_rows->type == GGML_TYPE_F16;
    rows.serial  = Staging::next_serial();
    return rows;
}

void stage_rows(const LayerWork & layer, bool value, const ggml_tensor * rows, const char * bytes, int thread, int n_threads) {
    Staging & staging = layer.cache().staging();
    for (int64_t i = thread; i < rows->ne[1]; i += n_threads) {
        const char * row = bytes + i * int64_t(rows->nb[1]);
        if (rows->type == GGML_TYPE_F32) {
            staging.put(value, int(i), reinterpret_cast<const float *>(row));
        } else {
            staging.put(value, int(i), reinterpret_cast<const uint16_t *>(row));
        }
    }
}

void commit_unattended(LayerWork & layer) {
    Cache &       cache   = layer.cache();
    const int64_t n_cells = cache.shape().n_cells;
    const auto &  ids     = layer.cell_ids;
    for (size_t begin = 0, end = 0; begin < ids.size(); begin = end) { // runs of rows in one stream
        const int64_t stream = ids[begin] / n_cells;
        for (end = begin; end < ids.size() && ids[end] / n_cells == stream; end++) {
        }
        StepShape shape = {layer.tensor.index, 1, int(stream), int(end - begin), 0, cache.shape().n_head_kv, true};
        if (layer.begins) {
            Step::begin_batch(cache, shape, ids.data() + begin, StepData());
        }
        std::vector<int> cells;
        int              last = 0;
        for (size_t i = begin; i < end; i++) {
            cells.push_back(int(ids[i] % n_cells));
            last = std::max(last, cells.back() + 1);
        }
        last = cache.pooled() ? cache.n_rows(layer.tensor.index) : last;
        std::vector<int32_t> place(static_cast<size_t>(last));
        for (int h = 0; h < cache.shape().n_head_kv; h++) {
            const Head head = cache.head(layer.tensor.index, int(stream), h);
            cache.index_cells(head, 0, last, place.data());
            const StagedRows rows = cache.staged(head, h, int(begin), int(end - begin), {});
            commit_rows(cache, {layer.tensor.index, int(stream), h, cells.data(), int(cells.size()), rows.k, rows.v,
                                rows.k_stride, rows.v_stride, place.data(), last, nullptr, 0, 1.0f});
        }
    }
}

namespace {

constexpr int64_t block_rows = 1024; // KV rows that are at hand in floats at a time

// The rows of a KV tensor around the one that is asked for, read in blocks and written back if they were changed.
class RowBlocks {
public:
    RowBlocks(const KvTensor & tensor, const ggml_tensor * root)
        : tensor_(tensor), width_(root->ne[0]), n_rows_(root->ne[1] * root->ne[2]) {}
    float * row(int64_t i) {
        if (i < first_ || i >= first_ + n_) {
            flush();
            first_ = i / block_rows * block_rows;
            n_     = std::min(block_rows, n_rows_ - first_);
            rows_.resize(size_t(n_ * width_));
            tensor_.buffer->read_rows(tensor_, first_, n_, rows_.data());
        }
        return rows_.data() + (i - first_) * width_;
    }
    void change() { changed_ = true; }
    void flush() {
        if (changed_) {
            tensor_.buffer->write_rows(tensor_, first_, n_, rows_.data(), false);
        }
        changed_ = false;
    }

private:
    KvTensor           tensor_;
    int64_t            width_, n_rows_, first_ = 0, n_ = 0;
    bool               changed_ = false;
    std::vector<float> rows_;
};

// Calls piece(floats of the KV row from the view's first value on, bytes of the other tensor, values) for each innermost run of the view.
template <class Piece>
void walk_view(const ggml_tensor * view, const ggml_tensor * other, char * bytes, RowBlocks & blocks, const Piece & piece) {
    const ggml_tensor * root      = view->view_src ? view->view_src : view;
    const int64_t       row_bytes = int64_t(ggml_row_size(root->type, root->ne[0]));
    const int64_t       per_block = ggml_blck_size(root->type), block_bytes = int64_t(ggml_type_size(root->type));
    int64_t             flat = 0; // both tensors have the same elements in the same order, in shapes of their own
    for (int64_t i3 = 0; i3 < view->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < view->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < view->ne[1]; i1++) {
                const int64_t at = int64_t(kv_offset(view)) + i1 * int64_t(view->nb[1]) + i2 * int64_t(view->nb[2]) +
                                   i3 * int64_t(view->nb[3]);
                float * row = blocks.row(at / row_bytes) + at % row_bytes / block_bytes * per_block;
                piece(row, bytes + flat * int64_t(other->nb[0]), view->ne[0]);
                flat += view->ne[0];
            }
        }
    }
}

} // namespace

void load_view(const ggml_tensor * view, const ggml_tensor * dst, char * bytes) {
    RowBlocks blocks(*kv_tensor(view), view->view_src ? view->view_src : view);
    walk_view(view, dst, bytes, blocks,
              [](const float * row, char * to, int64_t n) { std::memcpy(to, row, size_t(n) * sizeof(float)); });
}

void store_view(const ggml_tensor * src, const char * bytes, const ggml_tensor * view) {
    RowBlocks blocks(*kv_tensor(view), view->view_src ? view->view_src : view);
    walk_view(view, src, const_cast<char *>(bytes), blocks, [&](float * row, const char * from, int64_t n) {
        std::memcpy(row, from, size_t(n) * sizeof(float));
        blocks.change();
    });
    blocks.flush();
}

void fill_shadow(const ggml_tensor * root, ggml_tensor * shadow) {
    std::vector<char> bytes(ggml_nbytes(root));
    ggml_backend_tensor_get(root, bytes.data(), 0, bytes.size());
    ggml_backend_tensor_set(shadow, bytes.data(), 0, bytes.size());
}

void take_back_shadow(const ggml_tensor * root, const ggml_tensor * shadow) {
    const size_t      row_bytes = ggml_row_size(root->type, root->ne[0]);
    std::vector<char> before(ggml_nbytes(root)), after(ggml_nbytes(root));
    ggml_backend_tensor_get(root, before.data(), 0, before.size());
    ggml_backend_tensor_get(shadow, after.data(), 0, after.size());
    for (size_t at = 0; at < after.size(); at += row_bytes) {
        if (std::memcmp(before.data() + at, after.data() + at, row_bytes) != 0) {
            ggml_backend_tensor_set(const_cast<ggml_tensor *>(root), after.data() + at, at, row_bytes);
        }
    }
}

} // namespace mikv
