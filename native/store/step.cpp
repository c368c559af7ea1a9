#include <algorithm>
#include <cmath>

#include "backend/cpu/kernels.h"
#include "store/alibi.h"
#include "store/balancer.h"
#include "store/step_memory.h"

namespace mikv {

namespace {

constexpr int few_rows    = 24;   // query rows of a KV head up to which the decode kernel is used
constexpr int block_rows  = 128;  // query rows that a prefill item works on
constexpr int least_chunk = 256;  // cells of a decode item
constexpr int wide_chunk  = 4096; // and from how many on it may be cut further
constexpr int probe_chunk = 1024; // cells of a probe item

Columns columns_of(const Cache & cache, const StepShape & shape) {
    if (!cache.pooled()) {
        return {false, 0, shape.n_kv};
    }
    const int first_token = (cache.n_rows(shape.index) + 63) / 64 * 64;
    return {true, first_token, first_token + (shape.staged ? shape.n_tokens : 0)};
}

} // namespace

Step::Step(Cache & cache, const StepShape & shape, int n_threads)
    : cache_(cache), shape_(shape), n_threads_(std::max(1, n_threads)), columns_(columns_of(cache, shape)), reach_(columns_.n) {
    for (int i = 0; i < n_heads(); i++) {
        heads_.push_back(
            cache.head(shape.index, shape.first_stream + i / cache.shape().n_head_kv, i % cache.shape().n_head_kv));
    }
}

// Memory of one thread for query rows; thread_buffer() belongs to the kernels.
float * query_buffer(size_t n_floats) {
    static thread_local std::vector<float> memory;
    if (memory.size() < n_floats + 16) {
        memory.resize(n_floats + 16);
    }
    return reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

bool queries_are_few(int n_tokens, int group) { return n_tokens * group <= few_rows || n_tokens == 1; }

bool Step::few() const { return queries_are_few(shape_.n_tokens, group()); }

int Step::n_chunks() const {
    // enough items that threads end together
    const int wanted = std::max((3 * n_threads_ + n_heads() - 1) / n_heads(), columns_.n / wide_chunk);
    const int most   = std::max(1, columns_.n / least_chunk);
    return n_threads_ == 1 ? 1 : std::max(1, std::min(wanted, most));
}

Step::Scratch Step::lay_out() const {
    Scratch    s;
    float *    at   = reinterpret_cast<float *>(cache_.scratch.data());
    float *    base = at;
    const auto take = [&at](size_t n) {
        float * here = at;
        at += padded(n);
        return here;
    };
    const size_t heads = n_heads(), n_columns = size_t(columns_.n);
    const size_t rows   = size_t(shape_.n_tokens) * group();
    const size_t chunks = few() ? n_chunks() : 0;
    s.place             = reinterpret_cast<int32_t *>(take(heads * n_columns));
    s.waiting           = reinterpret_cast<int32_t *>(take(own_waiting() ? heads * n_columns : 0));
    s.mass              = take(heads * n_columns);
    s.most              = take(reads_each() ? heads * n_columns : 0);
    s.m                 = take(size_t(shape_.n_stream) * shape_.n_head * shape_.n_tokens);
    s.l                 = take(size_t(shape_.n_stream) * shape_.n_head * shape_.n_tokens);
    s.weights           = take(few() ? heads * rows * n_columns : 0);
    s.part_m            = take(heads * chunks * rows);
    s.part_l            = take(heads * chunks * rows);
    s.part_acc          = take(heads * chunks * rows * row_dim(cache_.shape().head_dim_v));
    s.size_bytes        = size_t(at - base) * sizeof(float);
    return s;
}

size_t Step::scratch_bytes(const Cache & cache, const StepShape & shape, int n_threads) {
    return Step(const_cast<Cache &>(cache), shape, n_threads).lay_out().size_bytes;
}

bool Step::reserve() {
    return cache_.scratch.grow(lay_out().size_bytes) &&
           (!shape_.staged || cache_.staging().reserve(shape_.n_stream * shape_.n_tokens));
}

void Step::index(int item) { index_chunk(item, {0, columns_.n}); }

void Step::index_chunk(int head_item, CellRange cells) {
    const Scratch s  = lay_out();
    const size_t  at = size_t(head_item) * columns_.n;
    cache_.index_cells(heads_[size_t(head_item)], cells.first, cells.last, s.place + at);
    std::fill_n(s.mass + at + cells.first, cells.last - cells.first, 0.0f);
    std::fill_n(s.most + at + cells.first, reads_each() ? cells.last - cells.first : 0, 0.0f);
    for (int i = cells.first; i < cells.last && own_waiting(); i++) {
        s.waiting[at + i] = columns_.token(i);
    }
}

QueryRows Step::gather(int stream, int head, int first_token, int n_tokens, float * q, float * slope) const {
    const Transform t_k = key_transform(stream, head);
    const int       g = group(), dim = t_k.row;
    // with soft-capping the cap is applied to the scaled logit: scale stays here
    for (int i = 0; i < g; i++) {
        const int query_head = head * g + i;
        slope[i]             = alibi_slope(data_.max_bias, shape_.n_head, query_head);
        for (int t = 0; t < n_tokens; t++) {
            const float * row =
                reinterpret_cast<const float *>(data_.q + stream * data_.q_stream_bytes + query_head * data_.q_head_bytes +
                                                (first_token + t) * data_.q_token_bytes);
            float * to = q + (size_t(i) * n_tokens + t) * dim;
            if (data_.q_block) {
                std::copy_n(row, t_k.dim, to);
                rotate_blocks(to, t_k.dim, data_.q_block);
                row = to;
            }
            if (!t_k.nothing()) {
                enter_query(t_k, row, to);
                row = to;
            }
            for (int d = 0; d < dim; d++) {
                to[d] = row[d] * data_.scale;
            }
        }
    }
    return {q,
            slope,
            data_.mask + stream * data_.mask_stream + first_token * data_.mask_token,
            data_.mask_token,
            g * n_tokens,
            n_tokens,
            data_.softcap};
}

QueryRows Step::over_columns(QueryRows rows, int stream, int head, CellRange columns, std::vector<uint16_t> & memory) const {
    if (!columns_.pooled) {
        return rows;
    }
    const CellTable &     table = cache_.cells(shape_.first_stream + stream);
    const HeadView &      view  = head_of(stream, head).view;
    const int64_t *       ids   = cell_ids_ ? cell_ids_ + int64_t(stream) * shape_.n_tokens : nullptr;
    const int             width = columns.last - columns.first;
    std::vector<uint32_t> cells(static_cast<size_t>(width));
    for (int i = 0; i < width; i++) {
        const int  column = columns.first + i, token = columns_.token(column);
        const bool held = column < view.n_cells && view.row_cell[column] != free_slot &&
                          !(shape_.staged && table.staged()[view.row_cell[column]] >= 0); // else somebody else's from now on
        cells[i] = token >= 0 ? uint32_t(ids[token] % cache_.shape().n_cells) : held ? view.row_cell[column] : free_slot;
    }
    memory.resize(size_t(rows.n_tokens) * width);
    for (int t = 0; t < rows.n_tokens; t++) {
        for (int i = 0; i < width; i++) {
            memory[size_t(t) * width + i] =
                cells[i] < uint32_t(shape_.n_kv) ? rows.mask[t * rows.mask_stride + cells[i]] : uint16_t(0xFC00);
        }
    }
    rows.mask        = memory.data() - columns.first;
    rows.mask_stride = width;
    return rows;
}

Transform Step::key_transform(int stream, int head) const { return cache_.key_transform(head_of(stream, head)); }

StagedRows Step::staged_rows(int stream, int head) const {
    return shape_.staged ? cache_.staged(head_of(stream, head), head, stream * shape_.n_tokens, shape_.n_tokens, data_.rows)
                         : StagedRows{};
}

CellIndex Step::cell_index(int stream, int head) const {
    const Scratch s    = lay_out();
    const int     item = stream * cache_.shape().n_head_kv + head;
    return {s.place + size_t(item) * columns_.n,
            own_waiting() ? s.waiting + size_t(item) * columns_.n : cache_.cells(shape_.first_stream + stream).staged()};
}

int Step::attend_items() const {
    const int tokens = std::max(1, block_rows / group());
    return n_heads() * (few() ? n_chunks() : (shape_.n_tokens + tokens - 1) / tokens);
}

void Step::attend(int item) {
    // One head after the other: a thread widens its staged rows once. A causal batch's last blocks see the most cells and go first.
    const int per_head = attend_items() / n_heads();
    if (few()) { // too few tokens for a balancer: the commit settles that
        attend_chunk(item / per_head, item % per_head);
    } else {
        settle_balancer(cache_, shape_, data_, item / per_head);
        attend_block(item / per_head, per_head - 1 - item % per_head);
    }
}

// Chunks end at multiples of 64 cells, so that kernels meet whole tiles.
CellRange Step::chunk_cells(int chunk) const {
    const int n = n_chunks(), tiles = (reach_ + 63) / 64;
    return {std::min(reach_, tiles * chunk / n * 64), std::min(reach_, tiles * (chunk + 1) / n * 64)};
}

void Step::attend_chunk(int head_item, int chunk) {
    const Scratch         s      = lay_out();
    const mikv_shape &    c      = cache_.shape();
    const int             stream = head_item / c.n_head_kv, h = head_item % c.n_head_kv, g = group();
    const int             rows   = g * shape_.n_tokens;
    const CellRange       cells  = chunk_cells(chunk);
    const size_t          q_size = padded(size_t(rows) * row_dim(c.head_dim_k));
    float *               q      = query_buffer(q_size + g);
    std::vector<uint16_t> mask;
    const QueryRows       query = over_columns(gather(stream, h, 0, shape_.n_tokens, q, q + q_size), stream, h, cells, mask);
    const size_t          part  = size_t(head_item) * n_chunks() + chunk;
    const Partial out = {s.part_m + part * rows, s.part_l + part * rows, s.part_acc + part * rows * row_dim(c.head_dim_v)};
    kernels().attend_few(head_of(stream, h).view, cell_index(stream, h), staged_rows(stream, h), query, cells.first, cells.last,
                         s.weights + size_t(head_item) * rows * columns_.n, columns_.n, out);
}

void Step::write_out(int stream, int query_head, int token, float m, float l, const float * acc, float * final_m,
                     float * final_l) const {
    const int dim    = cache_.shape().head_dim_v;
    float     factor = 1.0f;
    if (data_.sinks) { // an attention sink is one more logit without a value
        const float sink = data_.sinks[query_head];
        const float top  = std::max(m, sink);
        factor           = l > 0.0f ? std::exp(m - top) : 0.0f;
        l                = l * factor + std::exp(sink - top);
        m                = top;
    }
    const float inverse = l > 0.0f ? factor / l : 0.0f;
    float *     out     = data_.out + ((size_t(stream) * shape_.n_tokens + token) * shape_.n_head + query_head) * dim;
    leave_output(cache_.value_transform(), acc, inverse, out);
    if (data_.out_block) {
        rotate_blocks(out, dim, data_.out_block);
    }
    const size_t at = (size_t(stream) * shape_.n_head + query_head) * shape_.n_tokens + token;
    final_m[at]     = m;
    final_l[at]     = l;
}

void Step::attend_block(int head_item, int block) {
    const Scratch         s      = lay_out();
    const mikv_shape &    c      = cache_.shape();
    const int             stream = head_item / c.n_head_kv, h = head_item % c.n_head_kv, g = group();
    const int             most  = std::max(1, block_rows / g);
    const int             first = block * most, n = std::min(most, shape_.n_tokens - first), rows = g * n;
    const size_t          q_size = padded(size_t(rows) * row_dim(c.head_dim_k)), row_size = padded(rows);
    const int             dim_v = row_dim(c.head_dim_v);
    float *               q     = query_buffer(q_size + padded(g) + 2 * row_size + size_t(rows) * dim_v + 16);
    float *               slope = q + q_size;
    std::vector<uint16_t> mask;
    const QueryRows       query = over_columns(gather(stream, h, first, n, q, slope), stream, h, {0, columns_.n}, mask);
    const Partial         out   = {slope + padded(g), slope + padded(g) + row_size, slope + padded(g) + 2 * row_size};
    kernels().attend_many(head_of(stream, h).view, cell_index(stream, h), staged_rows(stream, h), query, 0, columns_.n, out);
    for (int row = 0; row < rows; row++) {
        write_out(stream, h * g + row / n, first + row % n, out.m[row], out.l[row], out.acc + size_t(row) * dim_v, s.m, s.l);
    }
}

// A query's weights on n columns, times factor, are attention that fell there. at: of the first, in [n_heads][n_columns].
void Step::note(const Scratch & s, const float * weights, float factor, int n, size_t at) const {
    kernels().add_scaled(weights, factor, n, s.mass + at);
    const int n_most = reads(reads_most) ? n : 0;
    for (int i = 0; i < n_most; i++) {
        s.most[at + i] = std::max(s.most[at + i], factor * weights[i]);
    }
    const int n_squares = reads(reads_squares) ? n : 0;
    for (int i = 0; i < n_squares; i++) {
        s.most[at + i] += factor * weights[i] * factor * weights[i];
    }
}

bool Step::reads(unsigned what) const { return (cache_.policy().policy->reads & what) != 0; }

std::vector<int> Step::probes(int stream) const {
    return probe_tokens(cache_.policy().policy->probes, shape_.n_tokens, cache_.cells(shape_.first_stream + stream).now());
}

int Step::probe_items() const {
    return few() || !shape_.staged || reads(reads_queries) ? 0 : n_heads() * ((columns_.n + probe_chunk - 1) / probe_chunk);
}

void Step::probe(int item) {
    const Scratch          s         = lay_out();
    const mikv_shape &     c         = cache_.shape();
    const int              head_item = item % n_heads(), chunk = item / n_heads();
    const int              stream = head_item / c.n_head_kv, h = head_item % c.n_head_kv, g = group();
    const std::vector<int> tokens = probes(stream);
    const int              n = int(tokens.size()), rows = g * n;
    const int              first = chunk * probe_chunk, last = std::min(columns_.n, first + probe_chunk), width = last - first;
    const int              dim    = row_dim(c.head_dim_k);
    const size_t           q_size = padded(size_t(rows) * dim), mask_size = padded(size_t(n) * probe_chunk / 2);
    float *                q      = query_buffer(q_size + padded(g) + mask_size + size_t(rows) * width + 16);
    float *                slope  = q + q_size;
    uint16_t *             mask   = reinterpret_cast<uint16_t *>(slope + padded(g));
    float *                logits = slope + padded(g) + mask_size;
    QueryRows              query  = {q, slope, mask - first, probe_chunk, rows, n, data_.softcap};
    std::vector<uint16_t>  columns;
    for (int i = 0; i < n; i++) {
        const int          t = tokens[i];
        std::vector<float> one(size_t(g) * dim);
        const QueryRows    own = over_columns(gather(stream, h, t, 1, one.data(), slope), stream, h, {first, last}, columns);
        std::copy_n(own.mask + first, width, mask + size_t(i) * probe_chunk);
        for (int j = 0; j < g; j++) {
            std::copy_n(one.data() + size_t(j) * dim, dim, q + (size_t(j) * n + i) * dim);
        }
    }
    kernels().score(head_of(stream, h).view, cell_index(stream, h), staged_rows(stream, h), query, first, last, logits - first,
                    width);
    for (int row = 0; row < rows; row++) {
        const size_t at = (size_t(stream) * shape_.n_head + h * g + row / n) * shape_.n_tokens + tokens[row % n];
        if (s.l[at] > 0.0f) {
            kernels().weigh(logits + size_t(row) * width, s.m[at], width);
            note(s, logits + size_t(row) * width, 1.0f / s.l[at], width, size_t(head_item) * columns_.n + first);
        }
    }
}

} // namespace mikv
