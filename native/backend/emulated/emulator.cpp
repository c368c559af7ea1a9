#include "backend/emulated/emulator.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>

#include "backend/emulated/fibers.h"

namespace mikv {

namespace {

constexpr int lanes = int(warp_size);

enum class Wait { nothing, block, warp, exchange, done };

struct Meeting {
    Wait         kind = Wait::nothing;
    const char * file = "";
    int          line = 0;
    uint32_t     mask = 0, bits = 0; // of an exchange

    bool same_place(const Meeting & o) const { return kind == o.kind && line == o.line && std::strcmp(file, o.file) == 0; }
    std::string text() const {
        if (kind == Wait::done) {
            return "has ended";
        }
        const char * slash = std::strrchr(file, '/');
        const char * what  = kind == Wait::block ? "barrier" : kind == Wait::warp ? "warp barrier" : "exchange";
        return std::string("waits at the ") + what + " of " + (slash ? slash + 1 : file) + ":" + std::to_string(line);
    }
};

std::vector<int> turns(TurnOrder order, int n) {
    std::vector<int> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    if (order == TurnOrder::reversed) {
        std::reverse(all.begin(), all.end());
    } else if (order == TurnOrder::odd_first) {
        std::stable_partition(all.begin(), all.end(), [](int i) { return i % 2 == 1; });
    } else if (order == TurnOrder::shuffled) {
        uint32_t state = 12345;
        for (int i = n - 1; i > 0; i--) {
            state = state * 1664525u + 1013904223u;
            std::swap(all[size_t(i)], all[(state >> 8) % uint32_t(i + 1)]);
        }
    }
    return all;
}

// Words that threads gave for products. A fast thread gives its next ones before its peers have taken these: two places, in turn.
struct Given {
    uint32_t words[2][6];
    int      turn;
};

struct GivenWords {
    const Given * warp;
    int           turn;
    uint32_t      word(uint32_t lane, int i) const { return warp[lane].words[turn][i]; }
};

// The block at work.
class Block {
public:
    bool     run(const EmulatedKernel & kernel, const WorkPlace & place, uint32_t number, const void * arguments,
                 EmulatorReport & report);
    void     meet(const Meeting & meeting);
    uint32_t exchange(const Meeting & meeting);
    void     products(const Meeting & meeting, uint32_t lane, int32_t * c, const uint32_t * a, const uint32_t * b);
    void     access(const void * address, size_t size_bytes, bool write, void * code);
    void     next_launch() { launch_++; }

private:
    bool        run_warp(int warp, const std::vector<int> & order);
    std::string warp_fault(int warp) const;
    std::string block_fault() const;
    void        release(int first, int n);
    bool        fail(const std::string & text);

    Fibers                 fibers_;
    const EmulatedKernel * kernel_    = nullptr;
    const void *           arguments_ = nullptr;
    void *                 shared_    = nullptr;
    WorkPlace              place_{};
    uint32_t               number_ = 0, launch_ = 0;
    EmulatorReport *       report_ = nullptr;
    std::vector<Meeting>   meetings_;
    std::vector<uint32_t>  received_;
    std::vector<Moment>    moments_;
    std::vector<Given>     given_; // [threads]
    std::vector<uint64_t>  shared_memory_;
    bool                   failed_ = false;
};

Block      block;
Watch      watch;
std::mutex one_at_a_time;
bool       at_work = false; // set from the start: memory is accessed before `block` is made

bool Block::fail(const std::string & text) {
    if (!failed_) {
        report_->faults.push_back(std::string(kernel_->name) + ": " + text);
    }
    failed_ = true;
    return false;
}

void Block::meet(const Meeting & meeting) {
    const size_t thread = size_t(fibers_.running());
    meetings_[thread]   = meeting;
    fibers_.wait();
}

uint32_t Block::exchange(const Meeting & meeting) {
    const size_t thread = size_t(fibers_.running());
    meet(meeting);
    return received_[thread];
}

void Block::products(const Meeting & meeting, uint32_t lane, int32_t * c, const uint32_t * a, const uint32_t * b) {
    const size_t thread = size_t(fibers_.running());
    Given &      mine   = given_[thread];
    const int    turn   = mine.turn;
    std::copy_n(a, 4, mine.words[turn]);
    std::copy_n(b, 2, mine.words[turn] + 4);
    mine.turn = 1 - turn;
    meet(meeting);
    add_products_of(GivenWords{&given_[thread / lanes * lanes], turn}, lane, c);
}

void Block::access(const void * address, size_t size_bytes, bool write, void * code) {
    const int thread = fibers_.running();
    if (thread < 0 || failed_ || !report_->watch || fibers_.on_stack(address)) {
        return;
    }
    Moment moment    = moments_[size_t(thread)];
    moment.code      = code;
    std::string text = watch.check(address, size_bytes, write, moment);
    if (!text.empty()) {
        fail(place_in_source(code) + ": " + text);
        fibers_.wait(); // for ever
    }
}

// What keeps the threads of a warp from going on together; "" if nothing does.
std::string Block::warp_fault(int warp) const {
    const size_t first = size_t(warp) * lanes;
    for (size_t t = first; t < first + lanes; t++) {
        const Meeting & a = meetings_[first];
        const Meeting & b = meetings_[t];
        if (!a.same_place(b) || a.mask != b.mask) {
            return "divergence: thread " + std::to_string(first) + " " + a.text() + ", thread " + std::to_string(t) + " " +
                   b.text();
        }
    }
    return "";
}

std::string Block::block_fault() const {
    for (const Meeting & meeting : meetings_) {
        if (!meeting.same_place(meetings_[0])) {
            return "divergence: thread 0 " + meetings_[0].text() + ", thread " + std::to_string(&meeting - meetings_.data()) +
                   " " + meeting.text();
        }
    }
    return "";
}

void Block::release(int first, int n) {
    for (int t = first; t < first + n; t++) {
        meetings_[size_t(t)].kind = Wait::nothing;
    }
}

// Runs a warp's threads until all of them wait for the block, or have ended.
bool Block::run_warp(int warp, const std::vector<int> & order) {
    const int first = warp * lanes;
    for (;;) {
        for (int turn : order) {
            const int thread = first + turn;
            if (meetings_[size_t(thread)].kind == Wait::nothing && !fibers_.resume(thread)) {
                meetings_[size_t(thread)] = {Wait::done, "", 0, 0, 0};
            }
            if (failed_) {
                return false;
            }
        }
        const auto begin = meetings_.begin() + first;
        const bool meets = std::any_of(begin, begin + lanes,
                                       [](const Meeting & m) { return m.kind == Wait::warp || m.kind == Wait::exchange; });
        if (!meets) {
            return true;
        }
        const std::string fault = warp_fault(warp);
        if (!fault.empty()) {
            return fail(fault);
        }
        for (int t = 0; t < lanes; t++) {
            const Meeting & mine = meetings_[size_t(first + t)];
            if (mine.kind == Wait::exchange) {
                received_[size_t(first + t)] = meetings_[size_t(first + (t ^ int(mine.mask)))].bits;
            } else {
                moments_[size_t(first + t)].warp_syncs++;
            }
        }
        release(first, lanes);
    }
}

bool Block::run(const EmulatedKernel & kernel, const WorkPlace & place, uint32_t number, const void * arguments,
                EmulatorReport & report) {
    kernel_     = &kernel;
    place_      = place;
    number_     = number;
    arguments_  = arguments;
    report_     = &report;
    failed_     = false;
    const int n = int(kernel.n_threads);
    meetings_.assign(size_t(n), Meeting());
    received_.assign(size_t(n), 0);
    moments_.assign(size_t(n), Moment());
    given_.assign(size_t(n), Given());
    for (int t = 0; t < n; t++) {
        moments_[size_t(t)] = {launch_, number, uint32_t(t), 0, 0, nullptr};
    }
    shared_memory_.assign(kernel.shared_bytes / 8 + 1, ~uint64_t(0)); // NaN
    shared_ = shared_memory_.data();
    watch.allow(shared_, kernel.shared_bytes, "shared memory", true);
    const auto work = [](void * user, int thread) {
        Block *   self = static_cast<Block *>(user);
        WorkPlace at   = self->place_;
        at.tid         = uint32_t(thread);
        self->kernel_->run(self->arguments_, at, self->shared_);
    };
    fibers_.start(n, work, this);
    const std::vector<int> warps = turns(report.order, n / lanes), order = turns(report.order, lanes);
    bool                   ended = false;
    while (!failed_ && !ended) {
        for (int warp : warps) {
            if (!run_warp(warp, order)) {
                break;
            }
        }
        const std::string fault = failed_ ? "" : block_fault();
        if (!fault.empty()) {
            fail(fault);
        }
        ended = meetings_[0].kind == Wait::done;
        if (!ended) {
            release(0, n);
        }
        for (Moment & moment : moments_) {
            moment.block_syncs++;
        }
    }
    watch.forget(shared_);
    return !failed_;
}

} // namespace

Watch & emulator_watch() { return watch; }

bool emulate(const EmulatedKernel & kernel, const uint32_t blocks[3], const void * arguments, EmulatorReport & report) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    std::vector<uint64_t>       copy(kernel.argument_bytes / 8 + 1);
    std::memcpy(copy.data(), arguments, kernel.argument_bytes);
    watch.allow(copy.data(), kernel.argument_bytes, "the arguments", false);
    block.next_launch();
    bool good = true;
    at_work   = true;
    for (int number : turns(report.order, int(blocks[0] * blocks[1] * blocks[2]))) {
        const uint32_t  i     = uint32_t(number);
        const WorkPlace place = {i % blocks[0], i / blocks[0] % blocks[1], i / blocks[0] / blocks[1], 0};
        good                  = good && block.run(kernel, place, i, copy.data(), report);
    }
    at_work = false;
    watch.forget(copy.data());
    return good;
}

void block_sync(const char * file, int line) { block.meet({Wait::block, file, line, 0, 0}); }

void warp_sync(const char * file, int line) { block.meet({Wait::warp, file, line, 0, 0}); }

uint32_t warp_exchange(uint32_t bits, uint32_t mask, const char * file, int line) {
    return block.exchange({Wait::exchange, file, line, mask, bits});
}

void add_byte_products(uint32_t lane, int32_t * c, const uint32_t * a, const uint32_t * b, const char * file, int line) {
    block.products({Wait::exchange, file, line, 0, 0}, lane, c, a, b);
}

void count_one(SharedCount * count) { ++*count; }

// Called by announce.cpp.
void note_access(const void * address, size_t size_bytes, bool write, void * code) {
    if (at_work) {
        block.access(address, size_bytes, write, code);
    }
}

} // namespace mikv
