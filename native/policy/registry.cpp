#include <cstring>
#include <deque>
#include <mutex>
#include <string>

#include "policy/policy.h"

namespace mikv {

namespace {

const Policy builtin[] = {
    {"h2o", rank_h2o, nullptr},
    {"recent", rank_recent, nullptr},
    {"random", rank_random, nullptr},
};
constexpr int n_builtin = sizeof(builtin) / sizeof(builtin[0]);

struct Registered {
    std::string name;
    Policy      policy;
};

std::mutex             guard;
std::deque<Registered> registered; // a deque: caches keep pointers into it

} // namespace

int policy_count() {
    std::lock_guard<std::mutex> lock(guard);
    return n_builtin + int(registered.size());
}

const Policy * policy_at(int index) {
    if (index < 0 || index >= policy_count()) {
        return nullptr;
    }
    std::lock_guard<std::mutex> lock(guard);
    return index < n_builtin ? &builtin[index] : &registered[index - n_builtin].policy;
}

const Policy * policy_named(const char * name) {
    for (int i = 0; const Policy * policy = policy_at(i); i++) {
        if (std::strcmp(policy->name, name) == 0) {
            return policy;
        }
    }
    return nullptr;
}

bool policy_register(const char * name, mikv_policy_fn rank, void * user) {
    if (!name || !*name || std::strlen(name) >= MIKV_POLICY_NAME_SIZE || !rank) {
        return false;
    }
    for (const Policy & policy : builtin) {
        if (std::strcmp(policy.name, name) == 0) {
            return false;
        }
    }
    std::lock_guard<std::mutex> lock(guard);
    for (Registered & entry : registered) {
        if (entry.name == name) {
            entry.policy.rank = rank;
            entry.policy.user = user;
            return true;
        }
    }
    registered.push_back({name, {nullptr, rank, user}});
    registered.back().policy.name = registered.back().name.c_str();
    return true;
}

} // namespace mikv
