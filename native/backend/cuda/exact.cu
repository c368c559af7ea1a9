// The kernels whose bits the format fixes: compiled with -fmad=false.
#include "kernel/gpu/kernels.h"

MIKV_EXACT_KERNELS(MIKV_KERNEL)
