#include "store/layers.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include "format/row.h"
#include "store/error.h"

namespace mikv {

namespace {

std::mutex                                      guard;
std::map<std::string, std::vector<LayerChoice>> tables;

bool read_number(const char *& at, double * number) {
    char * end = nullptr;
    *number    = std::strtod(at, &end);
    if (end == at) {
        return false;
    }
    at = end;
    return true;
}

bool read_choice(const char *& at, LayerChoice * row) {
    const char what   = *at++;
    const char of     = what == 'r' && (*at == 'k' || *at == 'v') ? *at++ : '\0'; // else of both
    double     number = 0;
    if (!read_number(at, &number)) {
        return false;
    }
    const int  bits  = int(number);
    const bool whole = double(bits) == number;
    switch (what) {
    case 'k':
        row->k_bits = bits;
        return whole && bits >= 2 && bits <= 4;
    case 'v':
        row->v_bits = bits;
        return whole && bits >= 2 && bits <= 4;
    case 'r':
        row->k_refined = of == 'v' ? row->k_refined : bits;
        row->v_refined = of == 'k' ? row->v_refined : bits;
        return whole && ((bits >= 2 && bits <= 8 && bits != 7) || (bits == exact_bits && !of));
    case 's':
        row->refined_share = float(number);
        return number >= 0 && number <= 1;
    case 'p':
        row->rows = float(number);
        return number > 0 && number <= 100;
    default:
        return false;
    }
}

bool read_row(const char * at, LayerChoice * row) {
    char * end = nullptr;
    row->layer = int(std::strtol(at, &end, 10));
    if (end != at && *end == '.') {
        at        = end + 1;
        row->head = int(std::strtol(at, &end, 10));
        if (row->head < 0) {
            return false;
        }
    }
    if (end == at || *end != ':' || !end[1] || row->layer < 0) {
        return false;
    }
    for (at = end + 1; *at;) {
        if (!read_choice(at, row)) {
            return false;
        }
    }
    return true;
}

} // namespace

mikv_status register_layers(const char * name, const char * table) {
    if (!name || !*name || std::strlen(name) >= sizeof(mikv_config::layers)) {
        return fail(MIKV_ERROR_ARGUMENT, "layer table \"%s\" cannot be registered: use a name of 1 to 31 characters",
                    name ? name : "");
    }
    std::vector<LayerChoice> rows;
    std::stringstream        parts(table);
    for (std::string part; std::getline(parts, part, ',');) {
        LayerChoice row;
        if (!read_row(part.c_str(), &row)) {
            return fail(MIKV_ERROR_ARGUMENT,
                        "the layer table has \"%s\": write rows like 0:k4v4r8s0.5 or 3.1:s0.1, with commas between them",
                        part.c_str());
        }
        rows.push_back(row);
    }
    std::lock_guard<std::mutex> lock(guard);
    tables[name] = rows;
    return MIKV_OK;
}

bool has_layers(const char * name) {
    std::lock_guard<std::mutex> lock(guard);
    return !*name || tables.count(name) != 0;
}

std::vector<LayerChoice> layers_named(const char * name) {
    std::lock_guard<std::mutex> lock(guard);
    const auto                  entry = tables.find(name);
    return entry == tables.end() ? std::vector<LayerChoice>() : entry->second;
}

} // namespace mikv
