// SPDX-License-Identifier: Apache-2.0
// The decode kernel for the compiler's baseline (SSE2, NEON, ...). Test: csrc/tests/test_decode.cpp.
#include "decode.h"
#include "half.h"

#define PORT_VECTOR 4
#define PORT_BF16 0
namespace port {
namespace {
// clang-format off: each needs the one before
#include "kernels/simd.h"
#include "decode_kernel.h"
// clang-format on
}  // namespace
}  // namespace port

namespace port {
DecodeFn generic_decode() { return &decode; }
}  // namespace port
