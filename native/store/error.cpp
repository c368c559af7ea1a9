#include "store/error.h"

#include <cstdarg>
#include <cstdio>

namespace mikv {

namespace {
thread_local char sentence[512] = "";
}

mikv_status fail(mikv_status status, const char * format, ...) {
    va_list args;
    va_start(args, format);
    std::vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    return status;
}

mikv_status succeed() {
    sentence[0] = '\0';
    return MIKV_OK;
}

const char * last_error() { return sentence; }

} // namespace mikv
