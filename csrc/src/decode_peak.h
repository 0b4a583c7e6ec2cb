// SPDX-License-Identifier: Apache-2.0
// The codecs that start from the largest pixel and move it within that pixel; PeakDecode in
// port_deploy/nn/detectors/decode.py says how. Test: csrc/tests/test_decode_peak.cpp, tests/test_decode_codecs.py.
#pragma once

#include "decode.h"
#include "port/port.hpp"

namespace port {

constexpr int kMinBlur = 9, kMaxBlur = 63;  // sides of the blur of kDark and kUdp, odd

// The blur along one axis: taps [blur], sum to one.
void blur_taps(int blur, float* taps);

class PeakStep {
 public:
  PeakStep(PeakCodec codec, int blur);

  // In: the largest pixel xy and its value clipped to 0..1, as MapCodec::kArgmax gives them. Out: the joint, or NaN and
  // 0 where the map has no pixel above 0.
  void apply(const void* map, const MapShape& shape, float xy[2], float* confidence) const;

 private:
  PeakCodec codec_;
  int half_;  // pixels of the blur to either side
  float taps_[kMaxBlur];
};

}  // namespace port
