// The start of a micro-batch: what its mask says of the cells, once for all layers.
#include "store/step.h"

namespace mikv {

void Step::begin_batch(Cache & cache, const StepShape & shape, const int64_t * cells, const StepData & data) {
    for (int s = 0; s < shape.n_stream; s++) {
        const int       stream = shape.first_stream + s;
        const CellBatch batch  = {cells + int64_t(s) * shape.n_tokens,
                                  int64_t(stream) * cache.shape().n_cells,
                                 data.mask ? data.mask + s * data.mask_stream : nullptr,
                                  data.mask_token,
                                  shape.n_tokens,
                                  shape.n_kv};
        cache.cells(stream).begin(batch, cache.config().sinks, cache.config().window);
    }
}

} // namespace mikv
