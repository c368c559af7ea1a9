#include "store/gpu_policy.h"

namespace mikv {

namespace {

int32_t fold_of(Fold fold) {
    switch (fold) {
    case Fold::sum:
        return fold_sum;
    case Fold::window:
        return fold_window;
    case Fold::peak:
        return fold_peak;
    case Fold::most:
        return fold_most;
    case Fold::fixed:
        break;
    }
    return fold_fixed;
}

struct RankOf {
    mikv_policy_fn cpu;
    int32_t        gpu;
};
const RankOf ranks[] = {
    {rank_h2o, rank_by_score},         {rank_normalized, rank_by_age},
    {rank_snapkv, rank_by_neighbours}, {rank_clamped, rank_by_clamped_score},
    {rank_recent, rank_by_birth},      {rank_random, rank_by_hash},
};

} // namespace

bool gpu_policy(const PolicyChoice & choice, CommitArgs * args) {
    for (const RankOf & rank : ranks) {
        if (rank.cpu == choice.policy->rank && !choice.policy->first && !(choice.policy->reads & reads_queries)) {
            args->fold     = fold_of(choice.policy->fold);
            args->rank     = rank.gpu;
            args->by_value = choice.by_value ? 1 : 0;
            return true;
        }
    }
    return false;
}

} // namespace mikv
