// SPDX-License-Identifier: Apache-2.0
// The kernels for the compiler's baseline (SSE2, NEON, ...). Test: csrc/tests/test_network.cpp.
#include "kernels/plan.h"

#define PORT_VECTOR 4
#define PORT_BF16 0
namespace port {
namespace {
// clang-format off: each needs the one before
#include "kernels/simd.h"
#include "kernels/gemm.h"
#include "kernels/attention.h"
#include "kernels/forward.h"
// clang-format on
}  // namespace

ForwardFn generic_forward() { return &forward; }

}  // namespace port
