// All GPU kernels.
#pragma once

#include "kernel/gpu/attend.h"
#include "kernel/gpu/begin.h"
#include "kernel/gpu/enter.h"
#include "kernel/gpu/fast_attend.h"
#include "kernel/gpu/index.h"
#include "kernel/gpu/list.h"
#include "kernel/gpu/load.h"
#include "kernel/gpu/mean.h"
#include "kernel/gpu/merge.h"
#include "kernel/gpu/select.h"
#include "kernel/gpu/store.h"
