#include "ggml/environment.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "store/budget.h"
#include "store/error.h"
#include "store/layers.h"

namespace mikv {

namespace {

// Leaves *value alone if the variable is not set.
mikv_status read_number(const char * name, double low, double high, double * value) {
    const char * text = std::getenv(name);
    if (!text || !*text) {
        return MIKV_OK;
    }
    char * end    = nullptr;
    errno         = 0;
    double number = std::strtod(text, &end);
    if (errno || *end || !(number >= low && number <= high)) {
        return fail(MIKV_ERROR_ARGUMENT, "%s=%s: use a number from %g to %g", name, text, low, high);
    }
    *value = number;
    return MIKV_OK;
}

mikv_status read_whole(const char * name, int low, int high, int32_t * value) {
    double number = *value;
    if (mikv_status status = read_number(name, low, high, &number)) {
        return status;
    }
    if (number != double(int32_t(number))) {
        return fail(MIKV_ERROR_ARGUMENT, "%s=%s: use a whole number from %d to %d", name, std::getenv(name), low, high);
    }
    *value = int32_t(number);
    return MIKV_OK;
}

} // namespace

mikv_status config_from_environment(mikv_config * config) {
    mikv_config c = default_config();
    const struct {
        const char * name;
        int          low, high;
        int32_t *    value;
    } whole[] = {
        {"MIKV_K_BITS", 0, 4, &c.k_bits},
        {"MIKV_V_BITS", 2, 4, &c.v_bits},
        {"MIKV_REFINED_BITS", 2, 16, &c.refined_bits},
        {"MIKV_SINKS", 0, 64, &c.sinks},
        {"MIKV_WINDOW", 0, 4096, &c.window},
        {"MIKV_GROUP", MIKV_GROUP_HALF, 64, &c.group},
        {"MIKV_CENTER_KEYS", 0, 1, &c.center_keys},
        {"MIKV_COMPRESS_F16", 0, 1, &c.compress_f16},
        {"MIKV_ROTATE", 0, 1, &c.rotate},
        {"MIKV_BALANCE", 0, MIKV_BALANCE_ALIKE, &c.balance},
        {"MIKV_LEAD_BITS", 2, 4, &c.lead_bits},
        {"MIKV_END_POINTS", 0, 1, &c.end_points},
    };
    for (const auto & entry : whole) {
        if (mikv_status status = read_whole(entry.name, entry.low, entry.high, entry.value)) {
            return status;
        }
    }
    double      share = c.refined_share, recent = 0, rows = c.rows, lead = 0, budget = 0, head_dim = 0;
    mikv_status status = read_number("MIKV_REFINED_SHARE", 0, 1, &share);
    status             = status ? status : read_number("MIKV_BUDGET_BYTES", 1, 9e15, &budget);
    status             = status ? status : read_number("MIKV_HEAD_DIM", 1, 1024, &head_dim);
    status             = status ? status : read_number("MIKV_RECENT_SHARE", 0, 1, &recent);
    status             = status ? status : read_number("MIKV_ROWS", 0, 1e9, &rows);
    status             = status ? status : read_number("MIKV_LEAD_SHARE", 0, 1, &lead);
    if (status) {
        return status;
    }
    c.refined_share = float(share);
    c.recent_share  = float(recent);
    c.rows          = float(rows);
    c.lead_share    = float(lead);
    c.budget_bytes  = int64_t(budget);
    c.head_dim_k = c.head_dim_v = int32_t(head_dim);
    if (const char * policy = std::getenv("MIKV_POLICY")) {
        if (std::strlen(policy) >= sizeof(c.policy)) {
            return fail(MIKV_ERROR_ARGUMENT, "MIKV_POLICY=%s: policy names have at most %d characters", policy,
                        int(sizeof(c.policy)) - 1);
        }
        std::memset(c.policy, 0, sizeof(c.policy));
        std::strcpy(c.policy, policy);
    }
    if (const char * layers = std::getenv("MIKV_LAYERS")) {
        std::strcpy(c.layers, "MIKV_LAYERS");
        if ((status = register_layers(c.layers, layers))) {
            return status;
        }
    }
    status = check_config(c);
    if (status == MIKV_OK) {
        *config = c;
    }
    return status;
}

} // namespace mikv
