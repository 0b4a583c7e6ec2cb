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
// At once   With AVX-512 an exponential costs little more than fetching the pixel. Then sweep 2 goes over the whole map
//           in place of sweep 1, with exp(T v) for weights; a map whose weights have no usable sum takes both sweeps.
//           At 64 x 64 that takes 0.56 of their time for a faint map and 1.13 for a confident one (1.4 at 64 x 48).
// Cost      Sweep 1 runs at the speed of the L2 cache. Sweep 2 costs 11 slots of a pipe per block with AVX-512, 10 at
//           once, and 14 operations without. Maps whose peak stands less than (11.1 + ln(H W max(H, W))) / T above the
//           rest are weighed entirely. csrc/tests/bench_decode.cpp measures it.
// Memory    4 kVec H / 4 bytes of scratch: band maxima.
// Numerics  fp32. Going down a column, a sum of the sums so far weighs each row by its distance from the end: one
//           addition in place of a multiplication, and all terms are positive.
// Limits    H, W <= 4096.
// Test: csrc/tests/test_decode.cpp.

// clang-format off: each needs the one before
#include "decode_survey.h"
#include "decode_weight.h"
// clang-format on

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

// Where the processor fetches what comes next by itself: one sweep after the other, all pixels in their order.
struct NothingAhead {
  PORT_MEMBER void fetch() {}
};

// Sums of the weights, of column times weight and of row times weight, in lanes.
struct Sums {
  Vec total, right, down;
};

// `kColumns` blocks side by side from block `b` on, over the rows y0 to y1; up to four blocks at a time, and all of
// their weights in step: one weight is a chain of eight operations, and a scheduler that holds many chains at different
// points is full before the arithmetic units are.
template <int kColumns, bool kHalf, bool kNarrow, typename Weight, typename Fetch>
PORT_INLINE void weigh(const Map<kHalf, kNarrow>& map, int b, int y0, int y1, const Weight& weight, Fetch& ahead,
                       Sums& sums) {
  constexpr int kRows = kColumns == 4 ? 1 : 2;
  int x[kColumns];
  Vec column[kColumns], rows[kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) {
    x[i] = map.column(b + i);
    column[i] = rows[i] = zero();
  }
  int y = y0;
  for (; y + kRows - 1 <= y1; y += kRows) {
    Vec v[kRows * kColumns], scale[kRows * kColumns];
#pragma GCC unroll 8
    for (int i = 0; i < kRows * kColumns; ++i) v[i] = map.block(x[i % kColumns], y + i / kColumns);
    weight(v, scale);
#pragma GCC unroll 8
    for (int i = 0; i < kRows * kColumns; ++i) {
      column[i % kColumns] = fma(v[i], scale[i], column[i % kColumns]);
      rows[i % kColumns] += column[i % kColumns];
    }
    ahead.fetch();
  }
  if (kRows > 1 && y == y1) {
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

// Sweep 2 over the box that sweep 1 found.
template <bool kHalf, bool kNarrow, typename Weight, typename Fetch>
PORT_INLINE Sums weigh_box(const Map<kHalf, kNarrow>& map, const Found& found, const Weight& weight, Fetch ahead) {
  const int y0 = found.y0, y1 = found.y1;
  Sums sums = {zero(), zero(), zero()};
  int b = found.b0;
  const int end = found.b1 + 1;
  if (kVec >= 16) {
    for (; b + 4 <= end; b += 4) weigh<4>(map, b, y0, y1, weight, ahead, sums);
  }
  for (; b + 2 <= end; b += 2) weigh<2>(map, b, y0, y1, weight, ahead, sums);
  if (b < end) weigh<1>(map, b, y0, y1, weight, ahead, sums);
  return sums;
}

// The expectation of x and y over rows up to y1, where the weights add up to `total`.
PORT_INLINE void divide(const Sums& sums, float total, int y1, float xy[2]) {
  xy[0] = sum(sums.right) / total;
  xy[1] = static_cast<float>(y1 + 1) - sum(sums.down) / total;
}

template <bool kHalf, bool kNarrow, typename Weight>
static void expect(const Map<kHalf, kNarrow> map, const Found found, const Weight& weight, Ahead ahead, float xy[2]) {
  const Sums sums = weigh_box(map, found, weight, ahead);
  const float total = sum(sums.total);
  if (total > 0.0f) {
    divide(sums, total, found.y1, xy);
  } else {
    map.centre(xy);
  }
}

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

// Without a branch: whether a faint value is below zero cannot be foreseen.
PORT_INLINE float between(float low, float value, float high) {
  const float raised = value > low ? value : low;
  return raised < high ? raised : high;
}

// Eq. (2): the value at the rounded place, clipped.
template <bool kHalf, bool kNarrow>
static float value_at(const Map<kHalf, kNarrow>& map, const float xy[2]) {
  const float x = between(0.0f, __builtin_rintf(xy[0]), static_cast<float>(map.width - 1));  // half to even
  const float y = between(0.0f, __builtin_rintf(xy[1]), static_cast<float>(map.height - 1));
  return between(0.0f, map.at(static_cast<int>(x), static_cast<int>(y)), 1.0f);
}

// Eqs. (1) and (2).
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
  if (xy[0] == xy[0] && xy[1] == xy[1]) *confidence = value_at(map, xy);
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

#if PORT_VECTOR == 16
// Both sweeps in one. Where map after map is confident, the next one probably is: two sweeps, the second over a small
// box, take less. Which way a map goes changes its joint by rounding, and by what two sweeps skip, alone.
template <bool kHalf>
static void decode_maps_at_once(const void* maps, const MapShape& shape, int count, float* scratch, float* xy,
                                float* confidence) {
  constexpr int kPatience = 4;  // confident maps in a row, until the next is swept twice
  Map<kHalf, false> map(maps, shape);
  const ExponentialOfProduct weight(shape.factor);
  const Found whole = {0.0f, 0, map.height - 1, 0, map.blocks - 1, true};
  int confident = 0;
  for (int i = 0; i < count; ++i, xy += 2, ++confidence, map.data += shape.map_stride) {
    bool done = false;
    if (confident < kPatience) {
      const Sums sums = weigh_box(map, whole, weight, NothingAhead());
      const float total = sum(sums.total);
      done = kLeastTotal < total && total < kLargestTotal;
      if (done) {
        divide(sums, total, whole.y1, xy);
        *confidence = value_at(map, xy);
      }
    }
    if (!done) decode_maps<kHalf, false>(map.data, shape, 1, scratch, xy, confidence);
    confident = *confidence > shape.reach ? confident + 1 : 0;
  }
}
#endif

static void decode(const void* maps, const MapShape& shape, int count, float* scratch, float* xy, float* confidence) {
#if PORT_VECTOR == 16
  if (shape.codec == MapCodec::kSoftargmax && shape.width >= kVec && shape.factor > kLeastFactor) {
    const auto at_once = shape.half ? &decode_maps_at_once<true> : &decode_maps_at_once<false>;
    return at_once(maps, shape, count, scratch, xy, confidence);
  }
#endif
  const bool narrow = shape.width < kVec;
  const auto run = shape.half ? (narrow ? &decode_maps<true, true> : &decode_maps<true, false>)
                              : (narrow ? &decode_maps<false, true> : &decode_maps<false, false>);
  run(maps, shape, count, scratch, xy, confidence);
}
