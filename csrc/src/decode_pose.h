// SPDX-License-Identifier: Apache-2.0
// The seam between the decode kernels and those who have a batch of heatmaps. Test: csrc/tests/test_decode.cpp.
#pragma once

#include <cstdint>

#include "decode.h"
#include "port/port.hpp"

namespace port {

constexpr std::int64_t kMaxDecodeScratch = decode_scratch_floats(kMaxMapSide, kMaxMapSide);

struct DecodeSettings {
  DecodeFn kernel;
  MapCodec codec;
  float temperature;

  DecodeSettings(DecodeFn fn, Codec how, float t);
};

// Joint `joint` of pose `pose`; scratch: decode_scratch_floats(H, W) floats, 64-byte aligned.
void decode_joint(const DecodeSettings& settings, const HeatmapView& view, std::int64_t pose, int joint, float* scratch,
                  float xy[2], float* confidence);

}  // namespace port
