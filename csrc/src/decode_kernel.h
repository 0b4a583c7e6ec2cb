// SPDX-License-Identifier: Apache-2.0
// The heatmaps of a pose to its joints, eqs. (1)-(2). Included once per instruction set, after kernels/simd.h.
//
//   softargmax      weight = exp(T (v - max)),   softargmax-sum  weight = max(v, 0)
//   x = sum over columns of column * (column sum) / total,   y likewise over rows.
//
// Split     One thread per pose. Sweep 1 reads a map from memory once: the maxima of every band of rows, and a chain of
//           products that turns NaN where a value is. Sweep 2 weighs its pixels; it finds a 16 KB map (64 x 64) in the
//           L1 cache, and fetches the map after the next one while its arithmetic leaves the load ports idle.
// Order     Sweep 1 of the next map comes before sweep 2 of this one: which rows sweep 2 takes hangs on the last
//           reduction of sweep 1, and the processor would wait for it.
// Skipping  A weight below 2^-16 / (H W max(H, W)) of the largest moves the joint by less than 2^-16 px even if every
//           pixel had it: sweep 2 visits only the box of bands and blocks of columns that hold a larger one.
//           A test per block would cost more than it saves: a mispredicted branch costs as much as five blocks.
// Cost      Sweep 1 runs at the speed of the L2 cache. Sweep 2 costs 9 vector operations per block with AVX-512 and 14
//           without, so maps whose peak stands less than (11.1 + ln(H W max(H, W))) / T above the rest are bound by
//           arithmetic. csrc/tests/bench_decode.cpp measures it.
// Memory    4 kVec H / 4 bytes of scratch: band maxima.
// Numerics  fp32. Going down a column from the last row, a sum of the sums so far weighs each row by its number:
//           one addition in place of a multiplication, and all terms are positive.
// Limits    H, W <= 4096.
// Test: csrc/tests/test_decode.cpp.

#include "decode_survey.h"

// A map that sweep 1 will read soon, fetched into the L1 cache while another is weighed.
struct Ahead {
  const char* line;
  int left;  // lines

  PORT_MEMBER void fetch() {
    if (left <= 0) return;
    left -= 4;
    for (int i = 0; i < 4; ++i, line += 64) __builtin_prefetch(line, 0, 3);
  }
};

// Sums of the weights, of column times weight and of row times weight, in lanes.
struct Sums {
  Vec total, right, down;
};

// `kColumns` blocks side by side from block `b` on, over the rows y0 to y1; up to four blocks at a time, and all of
// their weights in step: one weight is a chain of eight operations, and a scheduler that holds many chains at different
// points is full before the arithmetic units are.
template <int kColumns, bool kHalf, bool kNarrow, typename Weight>
PORT_INLINE void weigh(const Map<kHalf, kNarrow>& map, int b, int y0, int y1, const Weight& weight, Ahead& ahead,
                       Sums& sums) {
  constexpr int kRows = kColumns == 4 ? 1 : 2;
  int x[kColumns];
  Vec column[kColumns], rows[kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) {
    x[i] = map.column(b + i);
    column[i] = rows[i] = zero();
  }
  int y = y1;
  for (; y - kRows + 1 >= y0; y -= kRows) {
    Vec v[kRows * kColumns], scale[kRows * kColumns];
#pragma GCC unroll 8
    for (int i = 0; i < kRows * kColumns; ++i) v[i] = map.block(x[i % kColumns], y - i / kColumns);
    weight(v, scale);
#pragma GCC unroll 8
    for (int i = 0; i < kRows * kColumns; ++i) {
      column[i % kColumns] = fma(v[i], scale[i], column[i % kColumns]);
      rows[i % kColumns] += column[i % kColumns];
    }
    ahead.fetch();
  }
  if (kRows > 1 && y == y0) {
    Vec v[kColumns], scale[kColumns];
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) v[i] = map.block(x[i], y);
    weight(v, scale);
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) column[i] = fma(v[i], scale[i], column[i]), rows[i] += column[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) {
    if (x[i] == map.start) {
      column[i] = (Vec)((Bits)column[i] & map.fresh);
      rows[i] = (Vec)((Bits)rows[i] & map.fresh);
    }
    sums.total += column[i];
    sums.down += rows[i];
    sums.right = fma(column[i], numbered() + splat(static_cast<float>(x[i])), sums.right);
  }
}

// Sweep 2: the expectation of x and y under `weight`, over the box that sweep 1 found.
template <bool kHalf, bool kNarrow, typename Weight>
static void expect(const Map<kHalf, kNarrow> map, const Found found, const Weight& weight, Ahead ahead, float xy[2]) {
  const int y0 = found.y0, y1 = found.y1;
  Sums sums = {zero(), zero(), zero()};
  int b = found.b0;
  const int end = found.b1 + 1;
  if (kVec >= 16) {
    for (; b + 4 <= end; b += 4) weigh<4>(map, b, y0, y1, weight, ahead, sums);
  }
  for (; b + 2 <= end; b += 2) weigh<2>(map, b, y0, y1, weight, ahead, sums);
  if (b < end) weigh<1>(map, b, y0, y1, weight, ahead, sums);
  const float all = sum(sums.total);
  if (all > 0.0f) {
    xy[0] = sum(sums.right) / all;
    xy[1] = static_cast<float>(y0 - 1) + sum(sums.down) / all;
  } else {
    map.centre(xy);
  }
}

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

struct Clipped {
  Vec factor;

  template <int kCount>
  PORT_MEMBER void operator()(Vec (&v)[kCount], Vec (&scale)[kCount]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) v[i] = max(v[i], zero()), scale[i] = factor;
  }
};

template <bool kHalf, bool kNarrow>
static void first_largest(const Map<kHalf, kNarrow>& map, const Found& found, float xy[2]) {
  const Vec wanted = splat(found.maximum);
  for (int y = found.y0;; ++y) {
    for (int b = 0; b < map.blocks; ++b) {
      int x = map.column(b);
      if (!any_at_least(map.block(x, y), wanted)) continue;
      while (map.at(x, y) != found.maximum) ++x;
      xy[0] = static_cast<float>(x);
      xy[1] = static_cast<float>(y);
      return;
    }
  }
}

// Eq. (1), then eq. (2): the value at the rounded place, clipped.
template <bool kHalf, bool kNarrow>
static void answer(const Map<kHalf, kNarrow>& map, const MapShape& shape, const Found& found, Ahead ahead, float xy[2],
                   float* confidence) {
  xy[0] = xy[1] = __builtin_nanf("");
  *confidence = 0.0f;
  if (!found.usable) return;
  if (shape.codec == MapCodec::kArgmax) {
    first_largest(map, found, xy);
  } else if (shape.codec == MapCodec::kSoftargmaxSum) {
    // Values whose sum would overflow are scaled by a power of two: the quotient does not change.
    expect(map, found, Clipped{splat(found.maximum > 1e20f ? 0x1p-60f : 1.0f)}, ahead, xy);
  } else if (found.maximum < -3e38f) {  // nothing but -inf weighs anything
    map.centre(xy);
  } else {
    const float offset = -found.maximum * shape.factor;
    if (kMultipliesAndAddsExactly && offset > -kExactOffset && offset < kExactOffset) {
      expect(map, found, Exponential{splat(shape.factor), splat(offset)}, ahead, xy);
    } else {
      expect(map, found, ExponentialOfDifference{splat(found.maximum), splat(shape.factor)}, ahead, xy);
    }
  }
  if (!(xy[0] == xy[0] && xy[1] == xy[1])) return;
  const float right = static_cast<float>(map.width - 1), bottom = static_cast<float>(map.height - 1);
  const float x = __builtin_rintf(xy[0]), y = __builtin_rintf(xy[1]);  // half to even
  const int column = static_cast<int>(x < 0 ? 0 : x > right ? right : x);
  const int row = static_cast<int>(y < 0 ? 0 : y > bottom ? bottom : y);
  const float value = map.at(column, row);
  *confidence = value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
}

template <bool kHalf, bool kNarrow>
static void decode_maps(const void* maps, const MapShape& shape, int count, float* scratch, float* xy,
                        float* confidence) {
  Map<kHalf, kNarrow> map(maps, shape), next = map;
  Found found = look(map, shape, scratch), coming = found;
  constexpr int kAhead = 2;                   // the next one has been read by then
  constexpr int64_t kMostLines = 16384 / 64;  // of a map that leaves room for the two others in an L1 cache
  const int64_t lines = map.height * int64_t{map.width} * int64_t{sizeof(*map.data)} / 64;
  const bool fetch = map.stride == map.width && lines <= kMostLines;
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) {
      next.data = map.data + shape.map_stride;
      coming = look(next, shape, scratch);
    }
    const Ahead ahead = {reinterpret_cast<const char*>(map.data + kAhead * shape.map_stride),
                         fetch && i + kAhead < count ? static_cast<int>(lines) : 0};
    answer(map, shape, found, ahead, xy + 2 * i, confidence + i);
    map.data = next.data;
    found = coming;
  }
}

static void decode(const void* maps, const MapShape& shape, int count, float* scratch, float* xy, float* confidence) {
  const bool narrow = shape.width < kVec;
  const auto run = shape.half ? (narrow ? &decode_maps<true, true> : &decode_maps<true, false>)
                              : (narrow ? &decode_maps<false, true> : &decode_maps<false, false>);
  run(maps, shape, count, scratch, xy, confidence);
}
