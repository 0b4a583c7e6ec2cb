// SPDX-License-Identifier: Apache-2.0
// From the public types to what kernels are launched with. Host only, no CUDA header.
// Test: csrc/tests/emulated/test_decode.cpp, test_peaks.cpp, test_simcc.cpp.
#pragma once

#include <algorithm>

#include "decode_peak.h"
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

inline kernels::PeakParams peak_params(const HeatmapView& view, PeakCodec codec, int blur, float threshold,
                                       const Output& out, bool together) {
  static_assert(kMaxBlur < kernels::kTaps, "the last tap is zero");
  kernels::PeakParams p = {};
  p.maps = maps_of(view, Codec::kArgmax, 1.0f);
  p.out = results_of(out);
  p.count = view.batch * view.joints;
  p.joints = view.joints;
  p.threshold = threshold;
  p.rule = codec == PeakCodec::kMsra   ? kernels::PeakRule::kMsra
           : codec == PeakCodec::kDark ? kernels::PeakRule::kDark
                                       : kernels::PeakRule::kUdp;
  p.blur = blur;
  p.together = together;
  blur_taps(blur, p.taps);
  return p;
}

inline kernels::SimccParams simcc_params(const HeatmapView& x, const HeatmapView& y, float split_ratio,
                                         SimccScore score, float threshold, const Output& out, bool together) {
  kernels::SimccParams p = {};
  p.axes[0] = maps_of(x, Codec::kArgmax, 1.0f);
  p.axes[1] = maps_of(y, Codec::kArgmax, 1.0f);
  p.out = results_of(out);
  p.count = x.batch * x.joints;
  p.joints = x.joints;
  p.threshold = threshold;
  p.split_ratio = split_ratio;
  p.mean = score == SimccScore::kMean;
  p.together = together;
  return p;
}

}  // namespace port
