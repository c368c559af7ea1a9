// The fast kernels as a kernel set. They are templates over an instruction set, a struct that every set's file defines for
// itself, so that the algorithm is written once.
#pragma once

#include "backend/cpu/fast_few.h"
#include "backend/cpu/fast_many.h"

namespace mikv {

template <class Isa> static constexpr Kernels fast_kernels(const char * name, bool (*runs_here)()) {
    return {name,       runs_here,      encode_row<Isa>, decode_row<Isa>, score<Isa>, attend_few<Isa>, attend_many<Isa>,
            weigh<Isa>, add_scaled<Isa>};
}

} // namespace mikv
