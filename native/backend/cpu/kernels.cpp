#include "backend/cpu/kernels.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace mikv {

namespace {

// Slowest first.
const Kernels * const all_kernels[] = {
    &plain_kernels,
#if defined(MIKV_CPU_NEON)
    &neon_kernels,
#endif
#if defined(MIKV_CPU_X86)
    &avx2_kernels,
    &avx512_kernels,
#endif
};

std::atomic<const Kernels *> selected{nullptr};

} // namespace

const Kernels * kernels_at(int index) {
    for (const Kernels * set : all_kernels) {
        if (set->runs_here() && index-- == 0) {
            return set;
        }
    }
    return nullptr;
}

int kernels_count() {
    int n = 0;
    while (kernels_at(n)) {
        n++;
    }
    return n;
}

bool kernels_select(const char * name) {
    if (!name || std::strcmp(name, "auto") == 0) {
        selected = kernels_at(kernels_count() - 1);
        return true;
    }
    for (int i = 0; const Kernels * set = kernels_at(i); i++) {
        if (std::strcmp(set->name, name) == 0) {
            selected = set;
            return true;
        }
    }
    return false;
}

const Kernels & kernels() {
    const Kernels * set = selected.load(std::memory_order_relaxed);
    if (!set) {
        if (!kernels_select(std::getenv("MIKV_KERNEL"))) {
            kernels_select("auto");
        }
        set = selected;
    }
    return *set;
}

} // namespace mikv
