// SPDX-License-Identifier: Apache-2.0
// The few vector operations that the kernels need, over GCC/Clang vectors of PORT_VECTOR floats: 16 (AVX-512), 8 (AVX2
// and FMA) or 4 (whatever the compiler's baseline has: SSE2, NEON). Included once per instruction set, inside its own
// namespace and anonymous, so that no function compiled for one processor can be linked into code for another.
// Test: csrc/tests/test_network.cpp.

#if PORT_VECTOR == 16
using Vec = __m512;
#elif PORT_VECTOR == 8
using Vec = __m256;
#else
typedef float Vec __attribute__((vector_size(16)));
#endif
typedef uint32_t Bits __attribute__((vector_size(PORT_VECTOR * 4)));
typedef float Unaligned __attribute__((vector_size(PORT_VECTOR * 4), aligned(4), may_alias));

constexpr int kVec = PORT_VECTOR;

#define PORT_INLINE static inline __attribute__((always_inline))

PORT_INLINE Vec load(const float* p) { return (Vec) * reinterpret_cast<const Unaligned*>(p); }
PORT_INLINE void store(float* p, Vec v) { *reinterpret_cast<Unaligned*>(p) = (Unaligned)v; }

#if PORT_VECTOR == 16
PORT_INLINE Vec splat(float x) { return _mm512_set1_ps(x); }
PORT_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
PORT_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
PORT_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
PORT_INLINE float sum(Vec v) { return _mm512_reduce_add_ps(v); }
#elif PORT_VECTOR == 8
PORT_INLINE Vec splat(float x) { return _mm256_set1_ps(x); }
PORT_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
PORT_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
PORT_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
PORT_INLINE float sum(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
#else
PORT_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }
PORT_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
PORT_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
PORT_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
PORT_INLINE float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#endif

PORT_INLINE Vec zero() { return splat(0.0f); }

// 2^x for x <= 126, relative error below 2e-7; anything below -126 gives 2^-126.
PORT_INLINE Vec exp2(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
  x = max(x, splat(-126.0f));
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);  // -0.5..0.5
  Vec p = splat(1.535336188319500e-4f);
  p = fma(p, f, splat(1.339887440266574e-3f));
  p = fma(p, f, splat(9.618437357674640e-3f));
  p = fma(p, f, splat(5.550332471162809e-2f));
  p = fma(p, f, splat(2.402264791363012e-1f));
  p = fma(p, f, splat(6.931472028550421e-1f));
  p = fma(p, f, splat(1.0f));
  return (Vec)((Bits)p + ((Bits)shifted << 23));
}

// Interleaves the lower (upper) halves of a and b: kVec rounds of it over kVec vectors transpose them.
#if defined(__clang__)
#define PORT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Index __attribute__((vector_size(PORT_VECTOR * 4)));
#define PORT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Index{__VA_ARGS__})
#endif
#if PORT_VECTOR == 16
PORT_INLINE Vec zip_low(Vec a, Vec b) {
  return PORT_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
PORT_INLINE Vec zip_high(Vec a, Vec b) {
  return PORT_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif PORT_VECTOR == 8
PORT_INLINE Vec zip_low(Vec a, Vec b) { return PORT_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
PORT_INLINE Vec zip_high(Vec a, Vec b) { return PORT_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
PORT_INLINE Vec zip_low(Vec a, Vec b) { return PORT_SHUFFLE(a, b, 0, 4, 1, 5); }
PORT_INLINE Vec zip_high(Vec a, Vec b) { return PORT_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif

// Transposes a block of kVec x kVec held in registers: log2(kVec) perfect shuffles.
PORT_INLINE void transpose(Vec (&block)[kVec]) {
  for (int round = 1; round < kVec; round *= 2) {
    Vec next[kVec];
#pragma GCC unroll 8
    for (int i = 0; i < kVec / 2; ++i) {
      next[2 * i] = zip_low(block[i], block[i + kVec / 2]);
      next[2 * i + 1] = zip_high(block[i], block[i + kVec / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kVec; ++i) block[i] = next[i];
  }
}

// Truncating a float to its upper half would bias the sums: round to nearest, ties to even, as vcvtne2ps2bf16 does.
#if PORT_BF16
PORT_INLINE void store_bf16(uint16_t* p, Vec low, Vec high) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
// Pairs (even[i], odd[i]), the layout of a right-hand side, as 16 "floats".
PORT_INLINE void store_pairs(float* p, Vec even, Vec odd) {
  const __m512i spread = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(spread, (__m512i)_mm512_cvtne2ps_pbh(odd, even)));
}
PORT_INLINE Vec dot_bf16(Vec sum, uint32_t pair, Vec pairs) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)), (__m512bh)pairs);
}
#endif
