// SPDX-License-Identifier: Apache-2.0
// IEEE half precision for the emulated GPU: a table to float, and rounding to nearest even.
#include "half.h"

#include <device/intrinsics.h>

#include <cmath>
#include <vector>

namespace port::device {

const float* HalfFormat::table() {
  static const std::vector<float> values = [] {
    std::vector<float> all(65536);
    for (std::uint32_t i = 0; i < 65536; ++i) all[i] = half_to_float(static_cast<std::uint16_t>(i));
    return all;
  }();
  return values.data();
}

std::uint16_t HalfFormat::encode(float value) {
  const auto sign = static_cast<std::uint16_t>(float_to_bits(value) >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00u;
  if (magnitude < 6.103515625e-5f) {  // subnormal: a whole number of 2^-24
    return sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 16777216.0f));
  }
  const std::uint32_t bits = float_to_bits(magnitude);
  return sign | static_cast<std::uint16_t>((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13);
}

}  // namespace port::device
