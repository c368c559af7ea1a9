// Tables of what some layers and heads do otherwise than their cache's configuration says, by name.
#pragma once

#include <vector>

#include "include/mikv.h"

namespace mikv {

struct LayerChoice {
    int   layer         = -1;
    int   head          = -1; // all KV heads of the layer
    int   k_bits        = 0;  // 0: as configured
    int   v_bits        = 0;
    int   k_refined     = 0;     // bits of a refined key
    int   v_refined     = 0;     // the same for a value
    float refined_share = -1.0f; // below 0: as configured
    float rows          = 1.0f;  // of a pool: times as many as configured
};

// Reads the table as mikv_layers_register() says; one of that name is replaced. Caches that were made keep what they have.
mikv_status register_layers(const char * name, const char * table);

bool                     has_layers(const char * name);   // "" always is there: no rows
std::vector<LayerChoice> layers_named(const char * name); // unknown: no rows

} // namespace mikv
