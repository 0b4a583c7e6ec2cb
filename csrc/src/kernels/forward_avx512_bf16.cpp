// SPDX-License-Identifier: Apache-2.0
// The kernels for AVX-512 with bf16 dot products. Test: csrc/tests/test_network.cpp.
// The instruction set is chosen here and not by build flags, so that no header before this line is compiled for it.
#include "kernels/plan.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593, in its own AVX-512 header
#endif
#include <immintrin.h>

#define PORT_VECTOR 16
#define PORT_BF16 1
namespace port {
namespace {
// clang-format off: each needs the one before
#include "kernels/simd.h"
#include "kernels/gemm.h"
#include "kernels/attention.h"
#include "kernels/forward.h"
// clang-format on
}  // namespace
}  // namespace port
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace port {
ForwardFn avx512_bf16_forward() { return &forward; }
}  // namespace port
#else
namespace port {
ForwardFn avx512_bf16_forward() { return nullptr; }
}  // namespace port
#endif
