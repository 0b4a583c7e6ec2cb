// SPDX-License-Identifier: Apache-2.0
// Lays a folded network out for the kernels: one arena of packed weights and tables. Test: csrc/tests/test_network.cpp.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/plan.h"
#include "model.h"
#include "network_fold.h"

namespace port {

struct ArenaDelete {
  void operator()(unsigned char* memory) const;
};
using Arena = std::unique_ptr<unsigned char[], ArenaDelete>;

struct PackedNetwork {
  Plan plan;    // points into `arena`
  Arena arena;  // 64-byte aligned, in the order in which a forward pass reads it
};

// vector_floats: what `Plan::joints_ld` is a multiple of. bf16: the encoder's products, but not the first attention.
PackedNetwork pack(const ModelSpec& spec, const FoldedNetwork& net, int vector_floats, bool bf16,
                   const float* out_weight, const float* out_bias);

}  // namespace port
