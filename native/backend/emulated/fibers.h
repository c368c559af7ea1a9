// One fiber for each thread of a block: they take turns on the calling thread, and change only where they say so.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <ucontext.h>

namespace mikv {

class Fibers {
public:
    using Work = void (*)(void * user, int fiber);

    // Makes n fibers ready to begin work(user, fiber).
    void start(int n, Work work, void * user);
    // Runs a fiber until it waits or its work is done; false: done.
    bool resume(int fiber);
    // Called by the fiber that runs: back to whoever resumed it.
    void wait();

    int  running() const { return running_; } // -1: none
    bool on_stack(const void * address) const;

private:
    static constexpr size_t stack_bytes = 64 * 1024;

    struct Fiber {
        ucontext_t                 first;
        jmp_buf                    next;
        std::unique_ptr<uint8_t[]> stack;
        bool                       begun = false, done = false;
    };
    static void enter();

    std::vector<std::unique_ptr<Fiber>> fibers_;
    ucontext_t                          outside_first_;
    jmp_buf                             outside_;
    Work                                work_    = nullptr;
    void *                              user_    = nullptr;
    int                                 running_ = -1;
};

} // namespace mikv
