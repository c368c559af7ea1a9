#undef _FORTIFY_SOURCE // its longjmp takes a change of stacks for a fault
#include "backend/emulated/fibers.h"

namespace mikv {

namespace {

Fibers * entering = nullptr; // makecontext passes ints only

} // namespace

void Fibers::enter() {
    Fibers * self = entering;
    self->work_(self->user_, self->running_);
    self->fibers_[size_t(self->running_)]->done = true;
    _longjmp(self->outside_, 1);
}

void Fibers::start(int n, Work work, void * user) {
    work_ = work;
    user_ = user;
    while (int(fibers_.size()) < n) {
        fibers_.push_back(std::make_unique<Fiber>());
        fibers_.back()->stack.reset(new uint8_t[stack_bytes]);
    }
    for (auto & fiber : fibers_) {
        fiber->begun = fiber->done = false;
    }
}

// ucontext begins a fiber; from then on setjmp and longjmp change them, which unlike swapcontext ask the kernel nothing.
bool Fibers::resume(int fiber) {
    Fiber & f = *fibers_[size_t(fiber)];
    running_  = fiber;
    if (_setjmp(outside_) == 0) {
        if (f.begun) {
            _longjmp(f.next, 1);
        }
        f.begun = true;
        getcontext(&f.first);
        f.first.uc_stack.ss_sp   = f.stack.get();
        f.first.uc_stack.ss_size = stack_bytes;
        f.first.uc_link          = nullptr;
        makecontext(&f.first, &Fibers::enter, 0);
        entering = this;
        swapcontext(&outside_first_, &f.first);
    }
    const bool done = fibers_[size_t(running_)]->done;
    running_        = -1;
    return !done;
}

void Fibers::wait() {
    if (_setjmp(fibers_[size_t(running_)]->next) == 0) {
        _longjmp(outside_, 1);
    }
}

bool Fibers::on_stack(const void * address) const {
    const uint8_t * stack = running_ < 0 ? nullptr : fibers_[size_t(running_)]->stack.get();
    const auto      at    = reinterpret_cast<uintptr_t>(address);
    return stack && at >= reinterpret_cast<uintptr_t>(stack) && at < reinterpret_cast<uintptr_t>(stack) + stack_bytes;
}

} // namespace mikv
