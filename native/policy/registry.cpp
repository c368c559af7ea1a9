#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>

#include "policy/policy.h"

namespace mikv {

namespace {

const Policy builtin[] = {
    {"h2o", rank_h2o, nullptr, Fold::sum, true, 0, nullptr, {}},
    {"normalized", rank_normalized, nullptr, Fold::sum, true, 0, nullptr, {}},
    {"snapkv", rank_snapkv, nullptr, Fold::window, true, 0, nullptr, {}},
    {"peak", rank_h2o, nullptr, Fold::peak, true, 0, nullptr, {}},
    {"clamped", rank_clamped, nullptr, Fold::most, true, reads_most, nullptr, {}},
    {"probes", rank_normalized, nullptr, Fold::sum, true, 0, nullptr, {5, 5, true, true}},
    {"expected", rank_expected, nullptr, Fold::fixed, true, reads_queries, nullptr, {}},
    {"rdkv", rank_rdkv, nullptr, Fold::sum, true, reads_squares, nullptr, {}},
    {"keydiff", rank_h2o, nullptr, Fold::fixed, true, 0, first_keydiff, {}},
    {"recent", rank_recent, nullptr, Fold::sum, false, 0, nullptr, {}},
    {"random", rank_random, nullptr, Fold::sum, false, 0, nullptr, {}},
};
constexpr int n_builtin = sizeof(builtin) / sizeof(builtin[0]);

const std::string suffix = "*v"; // times the norm of the value

bool ends_by_value(const std::string & name) {
    return name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
}

struct Registered {
    std::string name;
    Policy      policy;
};

std::mutex             guard;
std::deque<Registered> registered; // a deque: caches keep pointers into it

} // namespace

float folded(Fold fold, float score, float mass, int n_queries) {
    switch (fold) {
    case Fold::sum:
        return score + mass;
    case Fold::window:
        return score * std::exp2(-float(n_queries) / window_half_life) + mass;
    case Fold::peak:
        return std::max(score, mass / float(n_queries));
    case Fold::most:
        return std::max(score, mass);
    case Fold::fixed:
        break;
    }
    return score;
}

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

PolicyChoice policy_named(const char * name) {
    const std::string text     = name;
    const bool        by_value = ends_by_value(text);
    const std::string plain    = by_value ? text.substr(0, text.size() - suffix.size()) : text;
    for (int i = 0; const Policy * policy = policy_at(i); i++) {
        if (policy->name == plain && (policy->weighs || !by_value)) {
            return {policy, by_value};
        }
    }
    return {};
}

bool policy_register(const char * name, mikv_policy_fn rank, void * user) {
    if (!name || !*name || std::strlen(name) >= MIKV_POLICY_NAME_SIZE || !rank || ends_by_value(name)) {
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
    registered.push_back({name, {nullptr, rank, user, Fold::sum, true, reads_norm, nullptr, {}}});
    registered.back().policy.name = registered.back().name.c_str();
    return true;
}

} // namespace mikv
