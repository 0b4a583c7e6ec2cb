// SPDX-License-Identifier: Apache-2.0
// The decode kernel for AVX-512. Test: csrc/tests/test_decode.cpp.
// The instruction set is chosen here and not by build flags, so that no header before this line is compiled for it.
#include "decode.h"
#include "half.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include <immintrin.h>

#define PORT_VECTOR 16
#define PORT_BF16 0
namespace port {
namespace {
// clang-format off: each needs the one before
#include "kernels/simd.h"
#include "decode_kernel.h"
// clang-format on
}  // namespace
}  // namespace port
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace port {
DecodeFn avx512_decode() { return &decode; }
}  // namespace port
#else
namespace port {
DecodeFn avx512_decode() { return nullptr; }
}  // namespace port
#endif
