// SPDX-License-Identifier: Apache-2.0
// Eqs. (1)-(2) for one map at a time, one kernel per instruction set. Plain C types only: the kernels include this.
// Test: csrc/tests/test_decode.cpp.
#pragma once

#include <stdint.h>

namespace port {

enum class MapCodec { kSoftargmax, kSoftargmaxSum, kArgmax };

constexpr int kMaxMapSide = 4096;  // H and W

// What all maps of a call have in common.
struct MapShape {
  bool half;  // float16, else float32
  int height, width;
  int64_t stride;  // between rows, in elements
  MapCodec codec;
  float factor;  // softargmax: temperature * log2(e)
  float reach;   // softargmax: pixels that are lower than the maximum by more than this weigh nothing
};

struct MapPeak {
  float x, y;        // heatmap pixels; NaN if the map holds NaN or +inf
  float confidence;  // 0..1
};

// map [H][W]; scratch: kDecodeScratch floats, 64-byte aligned.
using DecodeFn = void (*)(const void* map, const MapShape& shape, float* scratch, MapPeak* peak);

constexpr int kDecodeScratch = kMaxMapSide * 16;

// Null where the build has none for that instruction set.
DecodeFn generic_decode();
DecodeFn avx2_decode();
DecodeFn avx512_decode();

}  // namespace port
