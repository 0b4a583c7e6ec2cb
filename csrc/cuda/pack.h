// SPDX-License-Identifier: Apache-2.0
// A network as the GPU reads it: folded (csrc/src/network_fold.h), rounded, in one blob. Host only.
// Test: csrc/tests/emulated/test_line.cpp.
#pragma once

#include <vector>

#include "kernels/params.h"
#include "line.h"
#include "model.h"

namespace port {

struct DeviceBlob {
  kernels::Network network;  // `blob` is null: set it to where the bytes went
  std::vector<unsigned char> bytes;
};

// Error(kModelFile): more than 4 GiB of weights.
DeviceBlob pack_for_device(const ModelSpec& spec, const Tensors& tensors, Precision precision);

kernels::LineRules rules_of(const LineSettings& settings);

}  // namespace port
