// The kernels that may fuse products and sums.
#include "kernel/gpu/kernels.h"

MIKV_LOOSE_KERNELS(MIKV_KERNEL)
