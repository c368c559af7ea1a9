#include "store/budget.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "policy/policy.h"
#include "store/error.h"
#include "store/layers.h"
#include "store/transform.h"

namespace mikv {

namespace {

constexpr int smallest_proportion = 64; // a budget need not tell shares apart that differ more

mikv_status check_range(const char * name, int value, int low, int high) {
    if (value < low || value > high) {
        return fail(MIKV_ERROR_ARGUMENT, "%s is %d: use %d to %d", name, value, low, high);
    }
    return MIKV_OK;
}

mikv_status check_bits(const mikv_config & c) {
    mikv_status status = check_range("k_bits", c.k_bits, c.lead_share > 0.0f && c.k_bits == 0 ? 0 : 2, 4);
    status             = status ? status : check_range("lead_bits", c.lead_bits, 2, 4);
    if (status == MIKV_OK) {
        status = check_range("v_bits", c.v_bits, 2, 4);
    }
    if (status != MIKV_OK) {
        return status;
    }
    const int r = c.refined_bits;
    if ((r < 2 || r > 8 || r == 7) && r != exact_bits) {
        return fail(MIKV_ERROR_ARGUMENT, "refined_bits is %d: use 2, 3, 4, 5, 6, 8 or 16", r);
    }
    return MIKV_OK;
}

int group_of(const mikv_config & c, const mikv_shape & s) {
    const int half = s.head_dim_k / 2;
    if (c.group == MIKV_GROUP_HALF && (half == 32 || half == 64) && s.head_dim_k % 2 == 0 &&
        row_dim(s.head_dim_v) % half == 0) {
        return half;
    }
    if (c.group > 0) {
        return c.group;
    }
    if (c.lead_share > 0.0f) {
        return 32; // more places to cut
    }
    return row_dim(s.head_dim_k) % 64 == 0 && row_dim(s.head_dim_v) % 64 == 0 ? 64 : 32;
}

// Exact rows per head: one sequence's sinks, and another sequence's for every 16384 cells of context.
int exact_rows(const mikv_config & c, const mikv_shape & s) { return std::min(s.n_cells, c.sinks * (1 + s.n_cells / 16384)); }

// A pool smaller than the context; as many rows as cells need none.
bool is_pool(const mikv_config & c, const mikv_shape & s) { return c.rows != 1.0f && c.rows < float(s.n_cells); }

float pool_share(const mikv_config & c, const mikv_shape & s) {
    return !is_pool(c, s) ? 1.0f : c.rows < 1.0f ? c.rows : c.rows / float(s.n_cells);
}

// Sinks and window are never dropped, so there are at least rows for them, and for a token besides.
int least_rows(const mikv_config & c, const mikv_shape & s) { return std::min(s.n_cells, c.window + c.sinks + 1); }

// Sinks and window are always refined, so there are at least slots for them.
int least_slots(const mikv_config & c, const mikv_shape & s) {
    return c.window == 0 ? 0 : std::min(s.n_cells, c.window + c.sinks);
}

// What one head is to have, before rows and slots are counted.
struct HeadChoice {
    int   k_bits, v_bits, k_refined, v_refined;
    float share;       // of its rows, refined
    float rows;        // share of the cells that it keeps, more than it can where above 1
    bool  all = false; // refined whatever the budget
};

// Leading groups of a key: the share, but at least one where there is a share.
int lead_groups(const mikv_config & c, const RowFormat & k) {
    const int wanted = int(std::lround(c.lead_share * float(k.n_groups())));
    return c.lead_share > 0.0f ? std::max(1, wanted) : 0;
}

// rows: the cells of one stream, or fewer of a pool.
HeadLayout layout_with(const mikv_config & c, const mikv_shape & s, const HeadChoice & choice, int n_rows, int n_slots) {
    const int  group = group_of(c, s);
    const bool exact = choice.k_refined == exact_bits;
    HeadLayout l;
    l.k = {row_dim(s.head_dim_k), group, choice.k_bits, exact ? choice.k_bits : std::max(choice.k_bits, choice.k_refined),
           c.end_points};
    l.v = {row_dim(s.head_dim_v), group, choice.v_bits, exact ? choice.v_bits : std::max(choice.v_bits, choice.v_refined),
           c.end_points};
    l.k.n_lead    = lead_groups(c, l.k);
    l.k.lead_bits = l.k.n_lead ? c.lead_bits : 0;
    l.pooled      = is_pool(c, s);
    l.exact_slots = exact;
    l.n_cells     = n_rows;
    l.n_slots     = std::min(n_slots, n_rows);
    l.n_exact     = l.has_base() ? std::min(n_rows, exact_rows(c, s)) : 0;
    return l;
}

void apply(const LayerChoice & row, HeadChoice & choice) {
    choice.k_bits    = row.k_bits ? row.k_bits : choice.k_bits;
    choice.v_bits    = row.v_bits ? row.v_bits : choice.v_bits;
    choice.k_refined = row.k_refined ? row.k_refined : choice.k_refined;
    choice.v_refined = row.v_refined ? row.v_refined : choice.v_refined;
    choice.share     = row.refined_share >= 0.0f ? row.refined_share : choice.share;
    choice.rows *= row.rows;
    choice.all = row.refined_share >= 0.0f ? row.refined_share == 1.0f : choice.all;
}

// [n_layer][n_head_kv]
std::vector<HeadChoice> choices_of(const mikv_config & c, const mikv_shape & s, const std::vector<int> & layers) {
    const std::vector<LayerChoice> table = layers_named(c.layers);
    std::vector<HeadChoice>        choices;
    for (const int layer : layers) {
        for (int head = 0; head < s.n_head_kv; head++) {
            HeadChoice choice = {c.k_bits, c.v_bits, c.refined_bits, c.refined_bits, c.refined_share, pool_share(c, s)};
            for (const LayerChoice & row : table) {
                if ((row.layer < 0 || row.layer == layer) && (row.head < 0 || row.head == head)) {
                    apply(row, choice);
                }
            }
            choices.push_back(choice);
        }
    }
    return choices;
}

// Of what a budget decides: a pool's rows, or else the refined ones.
float largest_share(const std::vector<HeadChoice> & choices, bool pool) {
    float largest = 0;
    for (const HeadChoice & choice : choices) {
        largest = pool ? std::max(largest, choice.rows) : choice.all ? largest : std::max(largest, choice.share);
    }
    return largest;
}

int rounded_share(double share, int n) { return int(std::lround(std::min(share * n, double(n)))); }

// Slots, or rows of a pool, by shares: `cells` for the largest share, the others in proportion; never fewer than the least, nor more than
// there are cells.
CacheLayout layout_for(const mikv_config & c, const mikv_shape & s, const std::vector<HeadChoice> & choices, double cells) {
    const bool   pool    = is_pool(c, s);
    const double largest = largest_share(choices, pool);
    CacheLayout  layout;
    layout.n_head_kv    = s.n_head_kv;
    layout.balancer_dim = balancer_size(Balance(c.balance), s.head_dim_k);
    layout.query_sums   = policy_named(c.policy).policy->reads & reads_queries;
    for (const HeadChoice & choice : choices) {
        if (pool) {
            const int rows =
                std::max(least_rows(c, s), rounded_share(cells * double(choice.rows) / largest / s.n_cells, s.n_cells));
            const int slots = choice.share == 0.0f ? 0 : std::max(rounded_share(choice.share, rows), least_slots(c, s));
            layout.heads.push_back(layout_with(c, s, choice, rows, slots));
            continue;
        }
        const double wanted = choice.all ? s.n_cells : largest > 0 ? cells * double(choice.share) / largest : cells;
        const int    most   = int(std::lround(std::min(wanted, double(s.n_cells))));
        layout.heads.push_back(layout_with(c, s, choice, s.n_cells, std::max(most, least_slots(c, s))));
    }
    for (const HeadLayout & head : layout.heads) {
        layout.n_blocks = std::max(layout.n_blocks, head.n_blocks());
    }
    return layout;
}

} // namespace

mikv_config default_config() {
    mikv_config c;
    std::memset(&c, 0, sizeof(c));
    c.k_bits        = 4;
    c.v_bits        = 2;
    c.refined_bits  = 5;
    c.refined_share = 0.12f;
    c.rows          = 1.0f;
    c.lead_bits     = 4;
    c.sinks         = 4;
    c.window        = 64;
    c.center_keys   = 1;
    c.rotate        = 1;
    std::strcpy(c.policy, "normalized");
    return c;
}

mikv_status check_config(const mikv_config & c) {
    if (mikv_status status = check_bits(c)) {
        return status;
    }
    if (c.refined_bits < c.k_bits || c.refined_bits < c.v_bits) {
        return fail(MIKV_ERROR_ARGUMENT, "refined_bits is %d, below k_bits %d or v_bits %d: raise it", c.refined_bits, c.k_bits,
                    c.v_bits);
    }
    if (c.group != 0 && c.group != MIKV_GROUP_HALF && c.group != 32 && c.group != 64) {
        return fail(MIKV_ERROR_ARGUMENT, "group is %d: use 0 (automatic), -1 (half the head size), 32 or 64", c.group);
    }
    if (mikv_status status = check_range("sinks", c.sinks, 0, 64)) {
        return status;
    }
    if (mikv_status status = check_range("window", c.window, 0, 4096)) {
        return status;
    }
    mikv_status status = check_range("center_keys", c.center_keys, 0, 1);
    status             = status ? status : check_range("compress_f16", c.compress_f16, 0, 1);
    status             = status ? status : check_range("rotate", c.rotate, 0, 1);
    status             = status ? status : check_range("balance", c.balance, MIKV_BALANCE_OFF, MIKV_BALANCE_ALIKE);
    status             = status ? status : check_range("end_points", c.end_points, 0, 1);
    if (status) {
        return status;
    }
    if (!(c.refined_share >= 0.0f && c.refined_share <= 1.0f)) {
        return fail(MIKV_ERROR_ARGUMENT, "refined_share is %g: use 0 to 1", double(c.refined_share));
    }
    if (!(c.lead_share >= 0.0f && c.lead_share <= 1.0f)) {
        return fail(MIKV_ERROR_ARGUMENT, "lead_share is %g: use 0 to 1", double(c.lead_share));
    }
    if (!(c.recent_share >= 0.0f && c.recent_share <= 1.0f)) {
        return fail(MIKV_ERROR_ARGUMENT, "recent_share is %g: use 0 to 1", double(c.recent_share));
    }
    if (!(c.rows > 0.0f && c.rows <= 1e9f)) {
        return fail(MIKV_ERROR_ARGUMENT, "rows is %g: use a share of the cells, up to 1, or a number of rows", double(c.rows));
    }
    if (c.budget_bytes < 0) {
        return fail(MIKV_ERROR_ARGUMENT, "budget_bytes is %lld: use a positive number of bytes, or 0 for none",
                    (long long)c.budget_bytes);
    }
    if (c.head_dim_k < 0 || c.head_dim_v < 0) {
        return fail(MIKV_ERROR_ARGUMENT, "head sizes are %d and %d: use the model's, or 0 to learn them", c.head_dim_k,
                    c.head_dim_v);
    }
    if (!std::memchr(c.layers, '\0', sizeof(c.layers)) || !has_layers(c.layers)) {
        return fail(MIKV_ERROR_NOT_FOUND, "no layer table is registered as \"%.31s\": register it first", c.layers);
    }
    if (!std::memchr(c.policy, '\0', sizeof(c.policy)) || !policy_named(c.policy).policy) {
        std::string known;
        for (int i = 0; const Policy * policy = policy_at(i); i++) {
            known += std::string(i ? ", " : "") + policy->name;
        }
        return fail(MIKV_ERROR_NOT_FOUND, "unknown policy \"%.31s\": use %s, or register it first", c.policy, known.c_str());
    }
    return MIKV_OK;
}

mikv_status check_shape(const mikv_shape & s) {
    if (s.n_layer < 1 || s.n_head_kv < 1 || s.n_cells < 1 || s.n_stream < 1) {
        return fail(MIKV_ERROR_ARGUMENT, "a cache needs at least one layer, head, cell and stream, not %d, %d, %d, %d",
                    s.n_layer, s.n_head_kv, s.n_cells, s.n_stream);
    }
    if (s.head_dim_k < 1 || s.head_dim_v < 1) {
        return fail(MIKV_ERROR_ARGUMENT, "head sizes are %d and %d: both must be positive", s.head_dim_k, s.head_dim_v);
    }
    return MIKV_OK;
}

size_t CacheLayout::layer_bytes(int index) const {
    size_t sum = 0;
    for (int head = 0; head < n_head_kv; head++) {
        sum += at(index, head).total_bytes();
    }
    return sum;
}

int CacheLayout::n_rows(int index) const {
    int most = 0;
    for (int head = 0; head < n_head_kv; head++) {
        most = std::max(most, at(index, head).n_cells);
    }
    return most;
}

mikv_status plan_cache(const mikv_config & config, const mikv_shape & shape, const std::vector<int> & layers,
                       CacheLayout * layout) {
    mikv_status status = check_config(config);
    status             = status ? status : check_shape(shape);
    if (status) {
        return status;
    }
    const int group = group_of(config, shape);
    if (row_dim(shape.head_dim_k) % group || row_dim(shape.head_dim_v) % group) {
        return fail(MIKV_ERROR_UNSUPPORTED, "group %d does not divide head sizes %d and %d: use 0 or 32", group,
                    row_dim(shape.head_dim_k), row_dim(shape.head_dim_v));
    }
    const std::vector<HeadChoice> choices = choices_of(config, shape, layers);
    if (config.budget_bytes == 0) {
        *layout = layout_for(config, shape, choices, double(largest_share(choices, is_pool(config, shape))) * shape.n_cells);
        return MIKV_OK;
    }
    const int64_t smallest = planned_bytes(layout_for(config, shape, choices, 0), shape);
    if (smallest > config.budget_bytes) {
        return fail(MIKV_ERROR_BUDGET,
                    "a budget of %lld bytes is too small for base, sinks and window of %d cells: give at least %lld bytes",
                    (long long)config.budget_bytes, shape.n_cells, (long long)smallest);
    }
    int64_t low = 0, high = int64_t(shape.n_cells) * smallest_proportion; // the most slots that fit: low always does
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (planned_bytes(layout_for(config, shape, choices, double(middle)), shape) <= config.budget_bytes) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    *layout = layout_for(config, shape, choices, double(low));
    return MIKV_OK;
}

mikv_config applied_config(const mikv_config & config, const mikv_shape & shape, const CacheLayout & layout) {
    double slots = 0, rows = 0;
    int    least = shape.n_cells; // slots of a head that is not refined as a whole, or rows of a pool
    for (const HeadLayout & head : layout.heads) {
        slots += head.n_slots;
        rows += head.n_cells;
        least = std::min(least, head.pooled ? head.n_cells : head.n_slots);
    }
    mikv_config applied = config;
    applied.group       = layout.heads.front().k.group;
    applied.head_dim_k  = shape.head_dim_k;
    applied.head_dim_v  = shape.head_dim_v;
    applied.window = least < shape.n_cells ? std::max(config.window, int(config.recent_share * float(least))) : config.window;
    applied.refined_share = float(slots / rows);
    applied.rows          = float(rows / (double(layout.heads.size()) * shape.n_cells));
    return applied;
}

int64_t f16_bytes(const mikv_shape & s) {
    return int64_t(2) * s.n_layer * s.n_stream * s.n_cells * s.n_head_kv * (s.head_dim_k + s.head_dim_v);
}

} // namespace mikv
