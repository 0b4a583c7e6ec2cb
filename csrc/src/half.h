// SPDX-License-Identifier: Apache-2.0
// IEEE half precision without hardware. No STL: kernels include it. Test: csrc/tests/test_decode.cpp.
#pragma once

#include <stdint.h>
#include <string.h>

namespace port {

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  uint32_t bits;
  float value;
  if (magnitude >= 0x7C00u) {  // infinity, NaN
    bits = sign | 0x7F800000u | (magnitude & 0x3FFu) << 13;
  } else if (magnitude >= 0x0400u) {
    bits = sign | ((magnitude << 13) + 0x38000000u);
  } else {  // zero and subnormals: a multiple of 2^-24
    value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    memcpy(&bits, &value, 4);
    bits |= sign;
  }
  memcpy(&value, &bits, 4);
  return value;
}

}  // namespace port
