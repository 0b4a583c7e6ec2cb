// SPDX-License-Identifier: Apache-2.0
// The rate at which one core multiplies and adds when nothing else holds it up: the yardstick of the benchmarks.
// 24 chains of independent fused multiply-adds on registers: enough to hide their latency on every core so far (at most
// 2 a cycle of latency 6), few enough for 32 registers; AVX2 has 16 registers and 12 chains. No memory is touched.
// Test: tests/test_bench.py.
#include <algorithm>
#include <chrono>
#include <string>

#include "dispatch.h"
#include "network.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define PORT_PEAK_X86 1
#else
#define PORT_PEAK_X86 0
#endif

namespace port {
namespace {

constexpr int kRounds = 4096;  // of all chains; some 10 microseconds

// Runs kRounds and returns the floating-point operations done; `sink` keeps the compiler from leaving them out.
using Loop = double (*)(float* sink);

#if PORT_PEAK_X86
__attribute__((target("avx512f"))) double avx512_loop(float* sink) {
  constexpr int kChains = 24;
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(sink[0]);
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = b;
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(a, sums[i], b);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, sums[i]);
  _mm512_storeu_ps(sink, total);
  return 2.0 * 16 * kChains * kRounds;
}

__attribute__((target("avx512f,avx512bf16"))) double avx512_bf16_loop(float* sink) {
  constexpr int kChains = 24;
  const __m512bh pairs = (__m512bh)_mm512_set1_epi32(0x3f7f3f7f);
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(sink[0]);
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], pairs, pairs);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, sums[i]);
  _mm512_storeu_ps(sink, total);
  return 2.0 * 32 * kChains * kRounds;
}

__attribute__((target("avx2,fma"))) double avx2_loop(float* sink) {
  constexpr int kChains = 12;
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(sink[0]);
  __m256 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = b;
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = _mm256_fmadd_ps(a, sums[i], b);
  }
  __m256 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm256_add_ps(total, sums[i]);
  _mm256_storeu_ps(sink, total);
  return 2.0 * 8 * kChains * kRounds;
}
#endif

double generic_loop(float* sink) {
  constexpr int kChains = 12;
  typedef float Vec __attribute__((vector_size(16)));
  const Vec a = {0.999f, 0.999f, 0.999f, 0.999f}, b = {sink[0], sink[0], sink[0], sink[0]};
  Vec sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = b;
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = a * sums[i] + b;
  }
  Vec total = sums[0];
  for (int i = 1; i < kChains; ++i) total += sums[i];
  for (int i = 0; i < 4; ++i) sink[i] = total[i];
  return 2.0 * 4 * kChains * kRounds;
}

Loop loop_for(Isa isa, Precision precision) {
#if PORT_PEAK_X86
  if (precision == Precision::kBfloat16) return &avx512_bf16_loop;
  if (isa == Isa::kAvx512) return &avx512_loop;
  if (isa == Isa::kAvx2) return &avx2_loop;
#else
  (void)isa;
  (void)precision;
#endif
  return &generic_loop;
}

}  // namespace

double measure_peak_flops(Precision precision, double seconds, std::optional<Isa> isa) {
  using Clock = std::chrono::steady_clock;
  if (!(seconds > 0.0 && seconds <= 60.0)) {
    throw Error(ErrorCode::kInput, "expected seconds above 0 and up to 60, got " + std::to_string(seconds));
  }
  const Isa chosen = select_isa(isa);
  if (precision == Precision::kFloat16) {
    throw Error(ErrorCode::kUnavailable, "fp16 needs a GPU, and this measures the processor: use fp32 or bf16");
  }
  if (precision == Precision::kBfloat16 && !(chosen == Isa::kAvx512 && bf16_available())) {
    throw Error(ErrorCode::kUnavailable, "bf16 is not to be had on this processor and build: use fp32");
  }
  const Loop loop = loop_for(chosen, precision);
  alignas(64) float sink[16] = {};
  double best = 0.0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto start = Clock::now();
    const double flops = loop(sink);
    const double taken = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, flops / std::max(taken, 1e-9));
  } while (Clock::now() < end);
  return best;
}

}  // namespace port
