#include "ggml/node.h"

#include <cstring>

#include "ggml-impl.h"

namespace mikv {

bool contiguous(const ggml_tensor * t) {
    size_t size = ggml_type_size(t->type);
    for (int i = 0; i < 4; i++) {
        if (t->nb[i] != size) {
            return false;
        }
        size *= size_t(t->ne[i]);
    }
    return true;
}

bool uses_cache(const ggml_tensor * node) {
    if (kv_tensor(node)) {
        return true;
    }
    for (const ggml_tensor * src : node->src) {
        if (src && kv_tensor(src)) {
            return true;
        }
    }
    return false;
}

float op_float(const ggml_tensor * node, int i) {
    float value;
    std::memcpy(&value, reinterpret_cast<const float *>(node->op_params) + i, sizeof(value));
    return value;
}

bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const char *x = static_cast<const char *>(a->data), *y = static_cast<const char *>(b->data);
    return x < y + ggml_nbytes(b) && y < x + ggml_nbytes(a);
}

bool stores_rows(const ggml_tensor * node) {
    if (node->op != GGML_OP_SET_ROWS || !kv_tensor(node)) {
        return false;
    }
    const ggml_tensor * rows  = node->src[0];
    const ggml_tensor * cells = node->src[1];
    return !kv_offset(node) && node->ne[0] == node->view_src->ne[0] && rows->ne[2] == 1 && rows->ne[3] == 1 &&
           cells->ne[1] == 1;
}

namespace {

// A view [head_dim, n_kv, n_head_kv, n_stream] of whole cells from the start of a stream?
bool is_attention_view(const ggml_tensor * t) {
    const ggml_tensor * root = t->view_src;
    if (!root || t->type != root->type) {
        return false;
    }
    const size_t row = ggml_row_size(root->type, root->ne[0]);
    return t->ne[0] * t->ne[2] == root->ne[0] && t->nb[1] == row && t->nb[2] == ggml_row_size(root->type, t->ne[0]) &&
           (t->ne[3] == 1 || t->nb[3] == row * size_t(root->ne[1])) && kv_offset(t) % (row * size_t(root->ne[1])) == 0;
}

} // namespace

bool attends_layer(const ggml_tensor * node) {
    if (node->op != GGML_OP_FLASH_ATTN_EXT || !kv_tensor(node->src[1]) || !kv_tensor(node->src[2])) {
        return false;
    }
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    const KvTensor &   key = *kv_tensor(k), &value = *kv_tensor(v);
    return key.buffer == value.buffer && key.cache == value.cache && key.index == value.index && !key.value && value.value &&
           is_attention_view(k) && is_attention_view(v) && q->type == GGML_TYPE_F32 && q->ne[3] == k->ne[3] &&
           q->nb[0] == sizeof(float) && (!mask || mask->ne[2] == 1) && k->ne[1] == v->ne[1] && k->ne[3] == v->ne[3];
}

int first_stream_of(const ggml_tensor * keys) {
    return int(kv_offset(keys) / (ggml_row_size(keys->type, keys->view_src->ne[0]) * size_t(keys->view_src->ne[1])));
}

void fit_heads(const ggml_cgraph * graph) {
    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        if (node->op == GGML_OP_FLASH_ATTN_EXT && kv_tensor(node->src[1]) && kv_tensor(node->src[2])) {
            const KvTensor & key = *kv_tensor(node->src[1]);
            key.buffer->fit_heads(key, int(node->src[1]->ne[0]), int(node->src[2]->ne[0]));
        }
    }
}

} // namespace mikv
