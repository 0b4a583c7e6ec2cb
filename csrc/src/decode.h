// SPDX-License-Identifier: Apache-2.0
// Eqs. (1)-(2) for the maps of one pose, one kernel per instruction set. Plain C types only: the kernels include this.
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
  int64_t stride;      // between rows, in elements
  int64_t map_stride;  // between maps, in elements
  MapCodec codec;
  float factor;  // softargmax: temperature * log2(e)
  float reach;   // softargmax: pixels that are lower than the maximum by more than this weigh nothing
};

// The `count` >= 1 maps [H][W] of one pose, eqs. (1)-(2) -> xy [count][2] in heatmap pixels, confidence [count] 0..1.
// A map that holds NaN or +inf gives (NaN, NaN) and 0. scratch: kDecodeScratch floats, 64-byte aligned.
using DecodeFn = void (*)(const void* maps, const MapShape& shape, int count, float* scratch, float* xy,
                          float* confidence);

constexpr int kBand = 4;  // rows whose maxima are kept together
constexpr int kDecodeScratch = kMaxMapSide / kBand;

// Null where the build has none for that instruction set.
DecodeFn generic_decode();
DecodeFn avx2_decode();
DecodeFn avx512_decode();

}  // namespace port
