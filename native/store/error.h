// One sentence for whoever called: what was wrong and what would do.
#pragma once

#include "include/mikv.h"

namespace mikv {

// Remembers the sentence for mikv_last_error() of this thread and returns the status.
#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 2, 3)))
#endif
mikv_status
             fail(mikv_status status, const char * format, ...);
mikv_status  succeed(); // forgets the last sentence
const char * last_error();

} // namespace mikv
