// SPDX-License-Identifier: Apache-2.0
// The seam between the decode kernels and those who have a batch of heatmaps. Test: csrc/tests/test_decode.cpp.
#pragma once

#include <cstdint>

#include "decode.h"
#include "port/port.hpp"

namespace port {

// What is settled once per model or call.
struct DecodeSettings {
  DecodeFn kernel;
  MapCodec codec;
  float temperature;

  DecodeSettings(DecodeFn fn, Codec how, float t);
  MapShape shape_of(const HeatmapView& view) const;
};

// Joint `joint` of pose `pose`; shape: of that view; scratch: kDecodeScratch floats, 64-byte aligned.
void decode_joint(DecodeFn kernel, const MapShape& shape, const HeatmapView& view, std::int64_t pose, int joint,
                  float* scratch, float xy[2], float* confidence);

}  // namespace port
