#include "ggml/rotation.h"

#include "ggml-impl.h"
#include "ggml/plan.h"

namespace mikv {

namespace {

// Does one other tensor of the graph read it, and nobody when the graph is done?
bool read_once(const ggml_cgraph * graph, const ggml_tensor * t) {
    const size_t at = ggml_hash_find(&graph->visited_hash_set, t);
    return at != GGML_HASHSET_FULL && ggml_bitset_get(graph->visited_hash_set.used, at) && graph->use_counts[at] == 1 &&
           !(t->flags & GGML_TENSOR_FLAG_OUTPUT);
}

bool is_plain(const ggml_tensor * t) { return t->type == GGML_TYPE_F32 && contiguous(t); }

// What t is a view of, if t begins where that does and each view on the way is read once; null: something else reads it as well.
ggml_tensor * behind_views(const ggml_cgraph * graph, const ggml_tensor * t) {
    const void * start = t->data;
    while (t && moves_nothing(t->op)) {
        if (!read_once(graph, t)) {
            return nullptr;
        }
        t = t->src[0];
    }
    return t && t->data == start && !t->view_src ? const_cast<ggml_tensor *>(t) : nullptr;
}

Rotation as_rotation(const ggml_cgraph * graph, ggml_tensor * node) {
    Rotation r;
    if (node->op != GGML_OP_MUL_MAT || node->op_params[1] != GGML_HINT_SRC0_IS_HADAMARD) {
        return r;
    }
    const ggml_tensor * x = node->src[1];
    r.source              = is_plain(node) && is_plain(x) && !node->view_src ? behind_views(graph, x) : nullptr;
    const int64_t n       = node->ne[0];
    if (r.source && read_once(graph, r.source) && is_plain(r.source) && ggml_nbytes(r.source) == ggml_nbytes(node) &&
        n == x->ne[0] && n >= 4 && (n & (n - 1)) == 0) {
        r.node  = node;
        r.block = int(n);
    }
    return r;
}

} // namespace

Rotation rotation_before(const ggml_cgraph * graph, const ggml_tensor * t) {
    ggml_tensor * node = behind_views(graph, t);
    return node && read_once(graph, node) && ggml_nbytes(t) == ggml_nbytes(node) ? as_rotation(graph, node) : Rotation();
}

Rotation rotation_after(const ggml_cgraph * graph, int index) {
    for (int i = index + 1; i < graph->n_nodes; i++) {
        if (!moves_nothing(graph->nodes[i]->op)) {
            const Rotation r = as_rotation(graph, graph->nodes[i]);
            return r.source == graph->nodes[index] ? r : Rotation();
        }
    }
    return Rotation();
}

} // namespace mikv
