/* mikv_cpp: a mixed-precision KV cache for llama.cpp. This is the whole C API; see mikv_decl.h for its words. */
#ifndef MIKV_H
#define MIKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "mikv_decl.h"

#ifdef __cplusplus
}
#endif

#endif
