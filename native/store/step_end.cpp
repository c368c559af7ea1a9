// The end of a step: parts of a head merged, its rows committed.
#include <algorithm>
#include <cmath>

#include "backend/cpu/kernels.h"
#include "store/commit.h"
#include "store/step_memory.h"

namespace mikv {

void Step::commit(int head_item) {
    if (few() && data_.out) {
        merge_chunks(head_item);
    }
    if (shape_.staged) {
        commit_staged(head_item);
    }
}

void Step::merge_chunks(int head_item) {
    const Scratch      s      = lay_out();
    const mikv_shape & c      = cache_.shape();
    const int          stream = head_item / c.n_head_kv, h = head_item % c.n_head_kv;
    const int          rows = group() * shape_.n_tokens, n = n_chunks(), dim = row_dim(c.head_dim_v);
    std::vector<float> acc(dim);
    for (int row = 0; row < rows; row++) {
        const auto part = [&](int chunk) { return (size_t(head_item) * n + chunk) * rows + row; };
        float      m = masked_logit, l = 0.0f;
        for (int chunk = 0; chunk < n; chunk++) {
            m = s.part_l[part(chunk)] > 0.0f ? std::max(m, s.part_m[part(chunk)]) : m;
        }
        std::fill(acc.begin(), acc.end(), 0.0f);
        for (int chunk = 0; chunk < n; chunk++) {
            const size_t at = part(chunk);
            if (s.part_l[at] > 0.0f) {
                const float factor = std::exp(s.part_m[at] - m);
                l += s.part_l[at] * factor;
                for (int i = 0; i < dim; i++) {
                    acc[i] += s.part_acc[at * dim + i] * factor;
                }
            }
        }
        const int query_head = h * group() + row / shape_.n_tokens, token = row % shape_.n_tokens;
        write_out(stream, query_head, token, m, l, acc.data(), s.m, s.l);
        const size_t final_at = (size_t(stream) * shape_.n_head + query_head) * shape_.n_tokens + token;
        for (int chunk = 0; chunk < n && s.l[final_at] > 0.0f; chunk++) {
            const CellRange cells = chunk_cells(chunk);
            const size_t    at    = part(chunk);
            if (s.part_l[at] > 0.0f) {
                note(s, s.weights + (size_t(head_item) * rows + row) * columns_.n + cells.first,
                     std::exp(s.part_m[at] - s.m[final_at]) / s.l[final_at], cells.last - cells.first,
                     size_t(head_item) * columns_.n + cells.first);
            }
        }
    }
}

void Step::commit_staged(int head_item) {
    const Scratch      s      = lay_out();
    const mikv_shape & c      = cache_.shape();
    const int          stream = head_item / c.n_head_kv, h = head_item % c.n_head_kv;
    const int64_t      first_cell = int64_t(shape_.first_stream + stream) * c.n_cells;
    const bool         measured   = data_.out != nullptr;
    const size_t       at         = size_t(head_item) * columns_.n;
    std::vector<int>   cells(shape_.n_tokens);
    int                end = reach_;
    for (int t = 0; t < shape_.n_tokens; t++) {
        cells[t] = int(cell_ids_[int64_t(stream) * shape_.n_tokens + t] - first_cell);
        end      = columns_.pooled ? end : std::max(end, cells[t] + 1);
    }
    int32_t *            place = s.place + at;
    std::vector<int32_t> longer;
    if (end > reach_ || !measured) { // cells beyond what attention looked at, or no attention: the index is not there
        longer.resize(end);
        cache_.index_cells(head_of(stream, h), 0, end, longer.data());
        place = longer.data();
    }
    const StagedRows rows  = staged_rows(stream, h);
    const float      scale = few() ? 1.0f : float(shape_.n_tokens) / float(probes(stream).size());
    const float *    mass  = measured ? s.mass + at : nullptr;
    const float *    most  = measured && reads_each() ? s.most + at : nullptr;
    for (int i = 0; i < columns_.n && most && reads(reads_squares); i++) {
        s.most[at + i] *= scale;
    }
    if (reads(reads_queries) && measured) {
        add_queries(stream, h);
    }
    std::vector<float> drawn(shape_.n_tokens);
    for (int t = 0; t < shape_.n_tokens && measured; t++) {
        const int column = columns_.pooled ? columns_.first_token + t : cells[t];
        drawn[t]         = column >= reach_ ? 0.0f : most ? most[column] : mass[column] * scale;
    }
    commit_rows(cache_, {shape_.index, shape_.first_stream + stream, h, cells.data(), shape_.n_tokens, rows.k, rows.v,
                         rows.k_stride, rows.v_stride, place, end, mass, reach_, scale, most, drawn.data()});
}

// The micro-batch's queries of all query heads of a KV head, into what is known of the queries.
void Step::add_queries(int stream, int head) const {
    const int    dim = row_dim(cache_.shape().head_dim_k), rows = group();
    float *      q  = query_buffer(size_t(rows) * dim + rows);
    const Head & of = head_of(stream, head);
    for (int t = 0; t < shape_.n_tokens; t++) {
        gather(stream, head, t, 1, q, q + size_t(rows) * dim);
        for (int i = 0; i < rows * dim; i++) {
            of.query_sums[i % dim] += q[i];
            of.query_sums[dim + i % dim] += q[i] * q[i];
        }
    }
    of.state.n_queries += int64_t(rows) * shape_.n_tokens;
}

} // namespace mikv
