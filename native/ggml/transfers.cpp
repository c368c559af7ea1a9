#include "ggml/transfers.h"

#include <algorithm>
#include <vector>

#include "ggml-impl.h"
#include "ggml/buffer.h"
#include "store/error.h"

namespace mikv {

namespace {

struct Watch {
    bool                       on         = false;
    bool                       strange    = false;
    const char *               data       = nullptr;
    size_t                     size_bytes = 0;
    std::vector<mikv_transfer> noted;
};

thread_local Watch watch;

} // namespace

bool is_watching() { return watch.on; }

bool note_transfer(const ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    const char * at = static_cast<const char *>(data);
    if (!watch.on || !at || at < watch.data || at >= watch.data + watch.size_bytes) {
        return watch.on; // zeros over cells whose loading failed: no part of a state
    }
    const KvTensor *    kv        = kv_tensor(tensor);
    const ggml_tensor * root      = tensor->view_src ? tensor->view_src : tensor;
    const size_t        row_bytes = ggml_row_size(root->type, root->ne[0]), first = kv_offset(tensor) + offset;
    if (first % row_bytes || size % row_bytes) {
        watch.strange = true;
        return true;
    }
    watch.noted.push_back({kv->buffer->cache(*kv).id(), int64_t(first / row_bytes), int64_t(size / row_bytes), at - watch.data,
                           int64_t(size), int32_t(kv->index), int32_t(kv->value)});
    return true;
}

} // namespace mikv

using namespace mikv;

extern "C" {

mikv_status mikv_transfers_begin(const void * data, int64_t size_bytes) {
    if (watch.on) {
        return fail(MIKV_ERROR_ARGUMENT, "this thread watches transfers already: end that first");
    }
    watch            = Watch();
    watch.on         = true;
    watch.data       = static_cast<const char *>(data);
    watch.size_bytes = size_t(std::max<int64_t>(size_bytes, 0));
    return succeed();
}

int32_t mikv_transfers(mikv_transfer * out, int32_t capacity) {
    std::copy_n(watch.noted.begin(), std::min(watch.noted.size(), size_t(std::max(capacity, 0))), out);
    return watch.strange ? -1 : int32_t(watch.noted.size());
}

void mikv_transfers_end(void) { watch = Watch(); }

} // extern "C"
