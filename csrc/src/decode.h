// SPDX-License-Identifier: Apache-2.0
// Eqs. (1)-(2) for one map at a time, one kernel per instruction set. Plain C types only: the kernels include this.
// Test: csrc/tests/test_decode.cpp.
#pragma once

#include <stdint.h>

namespace port {

enum class MapCodec { kSoftargmax, kSoftargmaxSum, kArgmax };

constexpr int kMaxMapSide = 4096;  // H and W

struct MapView {
  const void* data;  // [H][W], rows `stride` elements apart
  bool half;         // float16, else float32
  int height, width;
  int64_t stride;
};

struct MapPeak {
  float x, y;        // heatmap pixels; NaN if the map holds NaN or +inf
  float confidence;  // 0..1
};

// scratch: decode_scratch_floats(height, width) floats, 64-byte aligned.
using DecodeFn = void (*)(const MapView& map, MapCodec codec, float temperature, float* scratch, MapPeak* peak);

constexpr int64_t decode_scratch_floats(int height, int width) {
  return static_cast<int64_t>(width + 64) + static_cast<int64_t>(height) * 16 + 64;
}

// Null where the build has none for that instruction set.
DecodeFn generic_decode();
DecodeFn avx2_decode();
DecodeFn avx512_decode();

}  // namespace port
