// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs. Test: csrc/tests/test_info.cpp.
#pragma once

#include <optional>
#include <vector>

#include "decode.h"
#include "port/port.hpp"

namespace port {

std::vector<Isa> compiled_isas();          // worst first
const std::vector<Isa>& available_isas();  // of those, the ones that this processor has

// Allocates nothing after the first call. `asked`, else PORT_FORCE_ISA, else the best available one.
// Throws Error(kUnavailable) that names what was asked for and what is to be had.
Isa select_isa(std::optional<Isa> asked);

DecodeFn decode_for(Isa isa);

}  // namespace port
