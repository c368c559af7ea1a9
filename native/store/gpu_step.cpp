#include "store/gpu_step.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernel/batch.h"
#include "store/gpu_policy.h"

namespace mikv {

namespace {

// The environment's MIKV_GPU=plain: to compare with, and if fast kernels are suspected.
bool only_plain() {
    const char * wanted = std::getenv("MIKV_GPU");
    return wanted && std::strcmp(wanted, "plain") == 0;
}

} // namespace

GpuStep::GpuStep(GpuCache & cache, const StepShape & shape) : gpu_(cache), shape_(shape) {}

bool GpuStep::few() const { return queries_are_few(shape_.n_tokens, group()); }

// Many queries' attention is measured on a sample of them.
int GpuStep::n_queries() const {
    return few() ? shape_.n_tokens : int(probe_tokens(gpu_.cache().policy().policy->probes, shape_.n_tokens, 0).size());
}

ScratchShape GpuStep::scratch_shape() const {
    const Cache &      cache = gpu_.cache();
    const mikv_shape & c     = cache_shape();
    ScratchShape       s{};
    s.n_stream    = shape_.n_stream;
    s.n_head_kv   = c.n_head_kv;
    s.group       = group();
    s.n_tokens    = shape_.n_tokens;
    s.n_queries   = n_queries();
    s.n_kv        = shape_.n_kv;
    s.dim_k       = row_dim(c.head_dim_k);
    s.dim_v       = row_dim(c.head_dim_v);
    s.with_output = few();
    for (int h = 0; h < c.n_head_kv; h++) {
        s.n_slots = std::max(s.n_slots, cache.head_shape(shape_.index, h).n_slots);
        s.n_exact = std::max(s.n_exact, cache.head_shape(shape_.index, h).n_exact);
    }
    s.n_processors = queue().device->n_processors(queue().queue);
    return s;
}

size_t GpuStep::scratch_bytes() const { return lay_out_scratch(scratch_shape(), nullptr).size_bytes; }

bool GpuStep::reserve() {
    uint8_t * memory = gpu_.scratch(scratch_bytes());
    at_              = lay_out_scratch(scratch_shape(), memory);
    return memory != nullptr;
}

int64_t GpuStep::loaded_values(const Cache & cache, const StepShape & shape, bool value) {
    const mikv_shape & c = cache.shape();
    return int64_t(shape.n_stream) * c.n_head_kv * shape.n_kv * (value ? c.head_dim_v : c.head_dim_k);
}

EnterArgs GpuStep::enter_args(const GpuRows & rows, float * out, bool value) const {
    EnterArgs a{};
    a.in           = rows.rows;
    a.out          = out;
    a.token_bytes  = rows.token_bytes;
    a.head_bytes   = rows.head_bytes;
    a.stream_bytes = rows.stream_bytes;
    a.n_stream     = shape_.n_stream;
    a.n_tokens     = shape_.n_tokens;
    a.n_heads      = cache_shape().n_head_kv;
    a.group        = 1;
    a.dim          = value ? cache_shape().head_dim_v : cache_shape().head_dim_k;
    a.row          = row_dim(a.dim);
    a.half         = rows.half;
    a.rotate       = gpu_.cache().config().rotate;
    return a;
}

LayerArgs GpuStep::layer_args() const {
    const mikv_shape & c = cache_shape();
    return {gpu_.heads(shape_.index, shape_.first_stream),
            shape_.staged ? gpu_.staged(shape_.first_stream) : nullptr,
            at_.place,
            shape_.n_stream,
            c.n_head_kv,
            group(),
            shape_.n_kv,
            c.n_cells,
            shape_.n_tokens,
            row_dim(c.head_dim_k),
            row_dim(c.head_dim_v)};
}

int GpuStep::enter(bool value, const GpuRows & rows) {
    return gpu_enter(queue(), enter_args(rows, value ? at_.staged_v : at_.staged_k, value));
}

int GpuStep::begin(const GpuStepData & data) {
    BeginArgs a{};
    a.cells        = data.cells;
    a.mask         = data.mask;
    a.born         = gpu_.born(shape_.first_stream);
    a.seen         = gpu_.seen(shape_.first_stream);
    a.flags        = gpu_.flags(shape_.first_stream);
    a.staged       = gpu_.staged(shape_.first_stream);
    a.clock        = gpu_.clock(shape_.first_stream);
    a.last         = at_.last;
    a.mask_token   = data.mask_token;
    a.mask_stream  = data.mask_stream;
    a.first_stream = shape_.first_stream;
    a.n_stream     = shape_.n_stream;
    a.n_tokens     = shape_.n_tokens;
    a.n_cells      = cache_shape().n_cells;
    a.n_kv         = shape_.n_kv;
    a.sinks        = gpu_.cache().config().sinks;
    a.window       = gpu_.cache().config().window;
    for (int stream = 0; stream < shape_.n_stream; stream++) {
        gpu_.count(shape_.first_stream + stream, shape_.n_tokens);
    }
    if (!few()) {
        const int32_t * tokens =
            gpu_.probes(probe_tokens(gpu_.cache().policy().policy->probes, shape_.n_tokens, gpu_.now(shape_.first_stream)));
        if (!tokens) {
            return gpu_failed;
        }
    }
    return gpu_begin(queue(), a);
}

AttendArgs GpuStep::attend_args(const GpuStepData & data) const {
    bool       good = true;
    AttendArgs a{};
    a.layer       = layer_args();
    a.q           = at_.q;
    a.mask        = data.mask;
    a.slope       = gpu_.slopes(data.max_bias, shape_.n_head, &good);
    a.tokens      = few() ? nullptr : gpu_.probed();
    a.staged_k    = at_.staged_k;
    a.staged_v    = at_.staged_v;
    a.part_m      = at_.part_m;
    a.part_l      = at_.part_l;
    a.part_acc    = at_.part_acc;
    a.kept        = at_.kept;
    a.mask_token  = data.mask_token;
    a.mask_stream = data.mask_stream;
    a.n_queries   = n_queries();
    a.n_chunks    = at_.n_chunks;
    a.chunk_cells = at_.chunk_cells;
    a.n_kept      = at_.n_kept;
    a.softcap     = data.softcap;
    a.code_group  = only_plain() ? 0 : gpu_.cache().head_shape(shape_.index, 0).k.group; // of all heads, and of their values
    a.layer.place = good ? a.layer.place : nullptr;
    return a;
}

MergeArgs GpuStep::merge_args(const GpuStepData & data, bool output) const {
    MergeArgs a{};
    a.part_m    = at_.part_m;
    a.part_l    = at_.part_l;
    a.part_acc  = output ? at_.part_acc : nullptr;
    a.sinks     = data.sinks;
    a.out       = data.out;
    a.final_m   = at_.final_m;
    a.final_l   = at_.final_l;
    a.share     = at_.share;
    a.n_stream  = shape_.n_stream;
    a.n_head_kv = cache_shape().n_head_kv;
    a.group     = group();
    a.n_queries = n_queries();
    a.n_chunks  = at_.n_chunks;
    a.dim       = cache_shape().head_dim_v;
    a.row       = row_dim(a.dim);
    a.rotate    = gpu_.cache().config().rotate;
    return a;
}

CommitArgs GpuStep::commit_args(const GpuStepData & data) const {
    CommitArgs a{};
    a.layer          = layer_args();
    a.cells          = data.cells;
    a.born           = gpu_.born(shape_.first_stream);
    a.seen           = gpu_.seen(shape_.first_stream);
    a.flags          = gpu_.flags(shape_.first_stream);
    a.clock          = gpu_.clock(shape_.first_stream);
    a.staged_k       = at_.staged_k;
    a.staged_v       = at_.staged_v;
    a.kept           = at_.kept;
    a.final_m        = at_.final_m;
    a.final_l        = at_.final_l;
    a.share          = at_.share;
    a.part_mass      = at_.part_mass;
    a.token_mass     = at_.token_mass;
    a.token_place    = at_.token_place;
    a.waiting        = at_.waiting;
    a.key            = at_.key;
    a.first_stream   = shape_.first_stream;
    a.n_rows         = group() * n_queries();
    a.n_kept         = at_.n_kept;
    a.n_score_blocks = at_.n_score_blocks;
    a.n_candidates   = at_.n_candidates;
    a.center_keys    = gpu_.cache().config().center_keys;
    a.layer_number   = gpu_.cache().layer_number(shape_.index);
    a.mass_scale     = float(shape_.n_tokens) / float(n_queries());
    gpu_policy(gpu_.cache().policy(), &a); // it is one that kernels know: gpu_refusal has seen to it
    return a;
}

// Everything as this layer's attention sees it, in the model's space.
int GpuStep::load(const GpuStepData & data) const {
    const mikv_shape & c = cache_shape();
    LoadArgs           a{};
    a.layer    = layer_args();
    a.flags    = gpu_.flags(shape_.first_stream);
    a.staged_k = at_.staged_k;
    a.staged_v = at_.staged_v;
    a.k        = data.loaded.k;
    a.v        = data.loaded.v;
    a.k_cell   = c.head_dim_k;
    a.v_cell   = c.head_dim_v;
    a.k_head   = a.k_cell * shape_.n_kv;
    a.v_head   = a.v_cell * shape_.n_kv;
    a.k_stream = a.k_head * c.n_head_kv;
    a.v_stream = a.v_head * c.n_head_kv;
    a.k_dim    = c.head_dim_k;
    a.v_dim    = c.head_dim_v;
    a.rotate   = gpu_.cache().config().rotate;
    return gpu_load(queue(), a);
}

int GpuStep::attend(const GpuStepData & data) {
    EnterArgs q             = enter_args(data.q, at_.q, false);
    q.n_heads               = shape_.n_head;
    q.group                 = group();
    q.query                 = 1;
    q.scale                 = data.scale;
    const AttendArgs attend = attend_args(data);
    const bool       here   = data.loaded.k == nullptr; // the answer
    int              error  = attend.layer.place ? gpu_index(queue(), attend.layer) : gpu_failed;
    if (!error && !here) {
        error = load(data);
    }
    if (!here && !shape_.staged) { // nobody asks for scores
        return error;
    }
    error = error ? error : gpu_enter(queue(), q);
    error = error ? error : gpu_attend(queue(), attend);
    error = error ? error : gpu_merge(queue(), merge_args(data, here && data.cells_last));
    if (!error && shape_.staged) {
        error = gpu_commit(queue(), commit_args(data));
    }
    return error || !here || data.cells_last ? error : gpu_merge(queue(), merge_args(data, true));
}

} // namespace mikv
