// SPDX-License-Identifier: Apache-2.0
// One heatmap to one joint, eqs. (1)-(2). Included once per instruction set, after kernels/simd.h.
//
//   softargmax      weight = exp(T (v - max)),   softargmax-sum  weight = max(v, 0)
//   x = sum over columns of column * (column sum) / total,   y likewise over rows: separable, so a weight is added
//   twice and multiplied never.
//
// Split     One thread per map. Sweep 1 reads the map from memory once: maximum, and the sum that turns NaN where a
// value
//           is. Sweep 2 finds a 16 KB map (64 x 64) in the L1 cache.
// Skipping  A weight below 2^-24 / (H W max(H, W)) of the largest moves the joint by less than 2^-24 px even if every
//           pixel had it: sweep 1 keeps a vector of maxima per row, and sweep 2 passes over rows and blocks below it.
// Memory    4 (W + 16 H + 128) bytes of scratch: column sums, row maxima.
// Numerics  fp32; sums run over kVec partial sums, so their error is that of H W / kVec additions at most.
// Limits    H, W <= 4096.
// Test: csrc/tests/test_decode.cpp.

#define PORT_MEMBER inline __attribute__((always_inline))

// Pixels at `p`: kVec of them, or one.
template <bool kHalf>
struct Pixels;

template <>
struct Pixels<false> {
  using Type = float;
  static PORT_MEMBER Vec get(const float* p) { return load(p); }
  static PORT_MEMBER float one(const float* p) { return *p; }
};

template <>
struct Pixels<true> {
  using Type = uint16_t;
  static PORT_MEMBER Vec get(const uint16_t* p) {
#if PORT_VECTOR == 16
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif PORT_VECTOR == 8
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    return Vec{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
#endif
  }
  static PORT_MEMBER float one(const uint16_t* p) { return half_to_float(*p); }
};

// `count` < kVec pixels, and `fill` in the other lanes.
template <bool kHalf>
PORT_INLINE Vec tail(const typename Pixels<kHalf>::Type* p, int count, float fill) {
  float lane[kVec];
  for (int i = 0; i < kVec; ++i) lane[i] = i < count ? Pixels<kHalf>::one(p + i) : fill;
  return load(lane);
}

PORT_INLINE float largest(Vec v) {
  float lane[kVec];
  store(lane, v);
  float result = lane[0];
  for (int i = 1; i < kVec; ++i) result = lane[i] > result ? lane[i] : result;
  return result;
}

PORT_INLINE bool any_above(Vec v, Vec bound) {
#if PORT_VECTOR == 16
  return _mm512_cmp_ps_mask(v, bound, _CMP_GT_OQ) != 0;
#elif PORT_VECTOR == 8
  return _mm256_movemask_ps(_mm256_cmp_ps(v, bound, _CMP_GT_OQ)) != 0;
#else
  const auto above = v > bound;
  return (above[0] | above[1] | above[2] | above[3]) != 0;
#endif
}

template <bool kHalf>
struct Map {
  using Type = typename Pixels<kHalf>::Type;
  const Type* data;
  int height, width, whole;  // whole: columns in full vectors
  int64_t stride;

  explicit Map(const MapView& view)
      : data(static_cast<const Type*>(view.data)),
        height(view.height),
        width(view.width),
        whole(view.width / kVec * kVec),
        stride(view.stride) {}
  const Type* row(int y) const { return data + y * stride; }
  float at(int x, int y) const { return Pixels<kHalf>::one(row(y) + x); }

  // The exact rule, for the maps that look wrong: every value <= 3e38, which NaN and +inf are not.
  bool usable() const {
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        if (!(at(x, y) <= 3e38f)) return false;
      }
    }
    return true;
  }
};

// Sweep 1: row_max[y] in lanes, the largest value; false if some value is NaN or above 3e38.
template <bool kHalf>
static bool survey(const Map<kHalf>& map, float* row_max, float* maximum) {
  const float low = -__builtin_inff();
  Vec top = splat(low), total = zero();
  for (int y = 0; y < map.height; ++y) {
    const auto* row = map.row(y);
    Vec best = splat(low);
    int x = 0;
    for (; x + 4 * kVec <= map.whole; x += 4 * kVec) {
      const Vec a = Pixels<kHalf>::get(row + x), b = Pixels<kHalf>::get(row + x + kVec);
      const Vec c = Pixels<kHalf>::get(row + x + 2 * kVec), d = Pixels<kHalf>::get(row + x + 3 * kVec);
      best = max(best, max(max(a, b), max(c, d)));
      total += (a + b) + (c + d);
    }
    for (; x < map.whole; x += kVec) {
      const Vec a = Pixels<kHalf>::get(row + x);
      best = max(best, a);
      total += a;
    }
    if (x < map.width) {
      best = max(best, tail<kHalf>(row + x, map.width - x, low));
      total += tail<kHalf>(row + x, map.width - x, 0.0f);
    }
    store(row_max + y * kVec, best);
    top = max(top, best);
  }
  *maximum = largest(top);
  // A maximum may lose a NaN, a sum never does; a sum that is NaN may also be inf - inf.
  const float check = sum(total);
  return (check == check && *maximum <= 3e38f) || map.usable();
}

// Column sums (in scratch), row-weighted sum and total of the weights, over rows and blocks above `bound`.
template <bool kHalf, typename Weight>
static void gather(const Map<kHalf>& map, const float* row_max, float* columns, float bound, const Weight& weight,
                   MapPeak* peak) {
  const int padded = (map.width + kVec - 1) / kVec * kVec;
  const Vec least = splat(bound);
  for (int x = 0; x < padded; x += kVec) store(columns + x, zero());
  Vec down = zero();  // sum over rows of y * (row sum)
  for (int y = 0; y < map.height; ++y) {
    if (!any_above(load(row_max + y * kVec), least)) continue;
    const auto* row = map.row(y);
    Vec across = zero();
    for (int x = 0; x < padded; x += kVec) {
      const Vec v =
          x < map.whole ? Pixels<kHalf>::get(row + x) : tail<kHalf>(row + x, map.width - x, -__builtin_inff());
      if (!any_above(v, least)) continue;
      const Vec w = weight(v);
      across += w;
      store(columns + x, load(columns + x) + w);
    }
    down = fma(across, splat(static_cast<float>(y)), down);
  }
  Vec total = zero(), right = zero(), column = zero();
  float lane[kVec];
  for (int i = 0; i < kVec; ++i) lane[i] = static_cast<float>(i);
  column = load(lane);
  for (int x = 0; x < padded; x += kVec) {
    const Vec w = load(columns + x);
    total += w;
    right = fma(w, column, right);
    column += splat(static_cast<float>(kVec));
  }
  const float all = sum(total);
  if (all > 0.0f) {
    peak->x = sum(right) / all;
    peak->y = sum(down) / all;
  } else {  // an empty map answers its centre
    peak->x = 0.5f * static_cast<float>(map.width - 1);
    peak->y = 0.5f * static_cast<float>(map.height - 1);
  }
}

struct Exponential {
  Vec maximum, factor;
  PORT_MEMBER Vec operator()(Vec v) const { return exp2((v - maximum) * factor); }
};

struct Clipped {
  Vec scale;
  PORT_MEMBER Vec operator()(Vec v) const { return max(v, zero()) * scale; }
};

template <bool kHalf>
static void first_largest(const Map<kHalf>& map, const float* row_max, float maximum, MapPeak* peak) {
  for (int y = 0; y < map.height; ++y) {
    if (largest(load(row_max + y * kVec)) != maximum) continue;
    for (int x = 0; x < map.width; ++x) {
      if (map.at(x, y) != maximum) continue;
      peak->x = static_cast<float>(x);
      peak->y = static_cast<float>(y);
      return;
    }
  }
}

template <bool kHalf>
static void decode_map(const MapView& view, MapCodec codec, float temperature, float* scratch, MapPeak* peak) {
  const Map<kHalf> map(view);
  float* row_max = scratch;
  float* columns = scratch + map.height * kVec;
  peak->x = peak->y = __builtin_nanf("");
  peak->confidence = 0.0f;
  float maximum;
  if (!survey(map, row_max, &maximum)) return;
  if (codec == MapCodec::kArgmax) {
    first_largest(map, row_max, maximum, peak);
  } else if (codec == MapCodec::kSoftargmaxSum) {
    // Values whose sum would overflow are scaled by a power of two: the quotient does not change.
    const Clipped weight = {splat(maximum > 1e20f ? 0x1p-60f : 1.0f)};
    gather(map, row_max, columns, 0.0f, weight, peak);
  } else if (maximum >= -3e38f) {
    const float t = temperature < 1e30f ? temperature : 1e30f;
    const float side = static_cast<float>(map.width > map.height ? map.width : map.height);
    const float area = static_cast<float>(map.width) * static_cast<float>(map.height);
    const float below = maximum - (16.7f + __builtin_logf(area * side)) / t;  // 16.7 > ln(2^24)
    // Where the reach drowns in the maximum's rounding, nothing is skipped.
    const float bound = below < maximum ? below : -__builtin_inff();
    const Exponential weight = {splat(maximum), splat(t * 1.44269504f)};
    gather(map, row_max, columns, bound, weight, peak);
  }
  if (!(peak->x == peak->x && peak->y == peak->y)) return;
  const float right = static_cast<float>(map.width - 1), down = static_cast<float>(map.height - 1);
  const float x = __builtin_rintf(peak->x), y = __builtin_rintf(peak->y);  // half to even
  const int column = static_cast<int>(x < 0 ? 0 : x > right ? right : x);
  const int row = static_cast<int>(y < 0 ? 0 : y > down ? down : y);
  const float value = map.at(column, row);
  peak->confidence = value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
}

static void decode(const MapView& map, MapCodec codec, float temperature, float* scratch, MapPeak* peak) {
  if (map.half) {
    decode_map<true>(map, codec, temperature, scratch, peak);
  } else {
    decode_map<false>(map, codec, temperature, scratch, peak);
  }
}
