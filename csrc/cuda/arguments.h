// SPDX-License-Identifier: Apache-2.0
// From the public types to what kernels are launched with. Host only, no CUDA header.
// Test: csrc/tests/emulated/test_decode.cpp.
#pragma once

#include <algorithm>

#include "kernels/params.h"
#include "port/port.hpp"

namespace port {

inline kernels::Maps maps_of(const HeatmapView& view, Codec codec, float temperature) {
  using kernels::MapCodec;
  using kernels::Pixel;
  kernels::Maps maps;
  maps.data = view.data;
  maps.stride_b = view.stride_b;
  maps.stride_n = view.stride_n;
  maps.stride_h = view.stride_h;
  maps.height = view.height;
  maps.width = view.width;
  maps.pixel = view.dtype == DType::kFloat32   ? Pixel::kFloat
               : view.dtype == DType::kFloat16 ? Pixel::kHalf
                                               : Pixel::kBfloat;
  maps.codec = codec == Codec::kSoftargmax      ? MapCodec::kSoftargmax
               : codec == Codec::kSoftargmaxSum ? MapCodec::kSoftargmaxSum
                                                : MapCodec::kArgmax;
  maps.factor = std::min(temperature, 1e30f) * 1.44269504f;
  return maps;
}

inline kernels::Results results_of(const Output& out) {
  return {out.joints, out.confidence, out.mask, nullptr, out.std};
}

}  // namespace port
