#include "backend/cpu/kernels.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

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

// Asked once: in a virtual machine cpuid takes longer than a token's attention.
const std::vector<const Kernels *> & runnable() {
    static const std::vector<const Kernels *> sets = [] {
        std::vector<const Kernels *> run_here;
        std::copy_if(std::begin(all_kernels), std::end(all_kernels), std::back_inserter(run_here),
                     [](const Kernels * set) { return set->runs_here(); });
        return run_here;
    }();
    return sets;
}

} // namespace

int kernels_count() { return int(runnable().size()); }

const Kernels * kernels_at(int index) { return index >= 0 && index < kernels_count() ? runnable()[size_t(index)] : nullptr; }

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
