// SPDX-License-Identifier: Apache-2.0
// What sweep 2 of decode_kernel.h weighs a pixel by, for every codec: `weight(v, scale)` leaves v * scale, whose
// product a multiply-add has free, up to a factor that is the same for all pixels of a map. Included once per
// instruction set, after decode_survey.h. Test: csrc/tests/test_decode.cpp.

// 2^t as t * scale, for t that are at most a few: relative error below 3e-6 after a constant factor, which the quotient
// takes out. Of t < -126 nothing is left, or less than 2^-125. The product is left to a multiply-add, which has it
// free.
template <int kCount>
PORT_INLINE void powers_of_two(Vec (&t)[kCount], Vec (&scale)[kCount]) {
  Vec f[kCount];
#if PORT_VECTOR == 16
  const Vec one = splat(1.0f);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) f[i] = _mm512_reduce_ps(t[i], 9);  // t - floor(t)
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) scale[i] = _mm512_scalef_ps(one, t[i]);
  const Vec c[] = {splat(1.3534444e-2f), splat(5.201095e-2f), splat(2.4144304e-1f), splat(6.9300377e-1f),
                   splat(1.0000026f)};
#else
  // 1.5 * 2^23: adding it rounds to a whole number in the low bits; with 127 more these are the exponent of 2^n.
  const Vec magic = splat(12583039.0f);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) t[i] = max(t[i], splat(-126.0f));
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) scale[i] = t[i] + magic;
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) f[i] = t[i] - (scale[i] - magic);  // -0.5..0.5
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) scale[i] = (Vec)((Bits)scale[i] << 23);
  const Vec c[] = {splat(9.5705315e-3f), splat(5.5918664e-2f), splat(2.4024735e-1f), splat(6.9312167e-1f),
                   splat(9.9999928e-1f)};
#endif
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) t[i] = fma(c[0], f[i], c[1]);
#pragma GCC unroll 8
  for (int k = 2; k < 5; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) t[i] = fma(t[i], f[i], c[k]);
  }
}

// One rounding in a multiply-add: then the offset of `Exponential` costs no accuracy.
constexpr bool kMultipliesAndAddsExactly = PORT_VECTOR > 4;
constexpr float kExactOffset = 1048576.0f;  // whose rounding, 2^-4, is nothing to the range of 2^t

// exp(T (v - maximum)) up to a constant factor.
struct Exponential {
  Vec factor, offset;  // offset: -maximum * factor, rounded, but to the same number for every pixel

  template <int kCount>
  PORT_MEMBER void operator()(Vec (&v)[kCount], Vec (&scale)[kCount]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) v[i] = fma(v[i], factor, offset);
    powers_of_two(v, scale);
  }
};

// The same for larger offsets, and where a multiply-add rounds twice.
struct ExponentialOfDifference {
  Vec maximum, factor;

  template <int kCount>
  PORT_MEMBER void operator()(Vec (&v)[kCount], Vec (&scale)[kCount]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) v[i] = (v[i] - maximum) * factor;
    powers_of_two(v, scale);
  }
};

#if PORT_VECTOR == 16
// exp(T v) up to a constant factor, of a map whose maximum is not known.
//
// With t = T log2(e) v, n = t rounded to 1/16 and r = t - n, |r| <= 1/32: 2^t = 2^n 2^r.
//   2^r    is a parabola to 7e-7 and takes one multiply-add: z^2 + constant with z = r + 23/16.
//   2^n    is one of 16 numbers, picked by the last four bits of n + 1.5 * 2^19, times a whole power of two.
//   Cost   Zen 5 has four pipes, two of which multiply. With its share of the sums a block takes ten slots, five of
//          them in those two: four multiply-adds, and half of the permutation, which takes a slot in each pair. The
//          scaling takes two in the other pair. That is 2.5 cycles, what the L2 cache takes to deliver the block. The
//          quartic of `powers_of_two` takes eleven slots, six of which multiply.
//   Range  Far above 127 the weight is infinite; far below -126 it is 0, or NaN where v is -inf or t is some -1e26. NaN
//          stays NaN. So the total says whether to trust it: beside kLeastTotal what vanished is nothing, and 4096
//          times kLargestTotal is no overflow.
constexpr float kLeastTotal = 0x1p-60f, kLargestTotal = 0x1p100f;
constexpr float kLeastFactor = 0x1p-10f;  // below it, exp(T v) might be finite where v is above 3e38

struct ExponentialOfProduct {
  static constexpr float kMagic = 786432.0f;  // 1.5 * 2^19, whose last bit is 1/16
  static constexpr float kShift = 1.4375f;    // near 1 / ln 2, the axis of the parabola, in sixteenths
  Vec factor, sixteenths;

  explicit PORT_MEMBER ExponentialOfProduct(float scale) : factor(splat(scale)), sixteenths(load(kSixteenths)) {}

  template <int kCount>
  PORT_MEMBER void operator()(Vec (&v)[kCount], Vec (&scale)[kCount]) const {
    Vec n[kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) n[i] = fma(v[i], factor, splat(kMagic));
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) scale[i] = _mm512_permutexvar_ps((__m512i)n[i], sixteenths);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) n[i] = n[i] - splat(kMagic + kShift);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) v[i] = _mm512_fmsub_ps(v[i], factor, n[i]);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) scale[i] = _mm512_scalef_ps(scale[i], n[i]);  // by 2^floor(n - 23/16)
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) v[i] = fma(v[i], v[i], splat(2.0810337f));
  }

  // 2^(j/16), the first of them at 23 modulo 16, since the exponent is taken after the shift.
  alignas(64) static constexpr float kSixteenths[16] = {
      1.4768262f, 1.5422108f, 1.6104903f, 1.6817929f, 1.7562522f, 1.8340081f, 1.9152066f, 1.0f,
      1.0442737f, 1.0905077f, 1.1387886f, 1.1892071f, 1.2418578f, 1.2968396f, 1.3542556f, 1.4142135f};
};
#endif

struct Clipped {
  Vec factor;

  template <int kCount>
  PORT_MEMBER void operator()(Vec (&v)[kCount], Vec (&scale)[kCount]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) v[i] = max(v[i], zero()), scale[i] = factor;
  }
};
