// SPDX-License-Identifier: Apache-2.0
// One heatmap to one joint, eqs. (1)-(2). Included once per instruction set, after kernels/simd.h.
//
//   softargmax      weight = exp(T (v - max)),   softargmax-sum  weight = max(v, 0)
//   x = sum over columns of column * (column sum) / total,   y likewise over rows.
//
// Split     One thread per map. Sweep 1 reads the map from memory once: the maxima of every band of rows, and a sum
// that
//           turns NaN where a value is. Sweep 2 finds a 16 KB map (64 x 64) in the L1 cache.
// Skipping  A weight below 2^-16 / (H W max(H, W)) of the largest moves the joint by less than 2^-16 px even if every
//           pixel had it: sweep 2 visits only the box of bands and blocks of columns that hold larger ones.
//           A box, and not a test per block: a mispredicted branch costs as much as two blocks.
// Cost      Sweep 1 runs at the speed of the L2 cache. Sweep 2 costs 17 vector operations per block of the box, so maps
//           whose peak stands less than (11.1 + ln(H W max(H, W))) / T above the rest are bound by arithmetic.
// Memory    4 kVec H / 4 bytes of scratch: band maxima.
// Numerics  fp32. Going down a column from the last row, a sum of the sums so far weighs each row by its number:
//           one addition in place of a multiplication, and all terms are positive.
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

// Holds v in a register: the compiler would rather read memory twice, and a vector that straddles two cache lines costs
// two accesses each time.
PORT_INLINE void keep(Vec& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#else
  static_cast<void>(v);
#endif
}

PORT_INLINE Vec numbered() {  // 0, 1, 2, ...
  float lane[kVec];
  for (int i = 0; i < kVec; ++i) lane[i] = static_cast<float>(i);
  return load(lane);
}

PORT_INLINE float largest(Vec v) {
#if PORT_VECTOR == 16
  return _mm512_reduce_max_ps(v);
#elif PORT_VECTOR == 8
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
#else
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
#endif
}

PORT_INLINE bool any_above(Vec v, Vec bound) {
#if PORT_VECTOR == 16
  return _mm512_cmp_ps_mask(v, bound, _CMP_GT_OQ) != 0;
#elif PORT_VECTOR == 8
  return _mm256_movemask_ps(_mm256_cmp_ps(v, bound, _CMP_GT_OQ)) != 0;
#elif defined(__SSE2__)
  return __builtin_ia32_movmskps((Vec)(v > bound)) != 0;
#else
  const auto above = v > bound;
  return (above[0] | above[1] | above[2] | above[3]) != 0;
#endif
}

template <bool kHalf>
struct Map {
  using Type = typename Pixels<kHalf>::Type;
  const Type* data;
  int height, width;
  int64_t stride;
  int blocks;  // per row; where width is no multiple of kVec, the last one overlaps the one before
  int start;   // column of the last block
  Bits fresh;  // lanes of the last block that the one before it lacks

  Map(const void* pixels, const MapShape& shape)
      : data(static_cast<const Type*>(pixels)), height(shape.height), width(shape.width), stride(shape.stride) {
    blocks = (width + kVec - 1) / kVec;
    start = width > kVec ? width - kVec : 0;
    const Vec column = numbered() + splat(static_cast<float>(start));
    fresh = (Bits)(column >= splat(static_cast<float>((blocks - 1) * kVec))) &
            (Bits)(column < splat(static_cast<float>(width)));
  }

  const Type* row(int y) const { return data + y * stride; }
  float at(int x, int y) const { return Pixels<kHalf>::one(row(y) + x); }

  // Block at column x of row y. A map narrower than one vector is filled up with its first pixel.
  PORT_MEMBER Vec block(int x, int y) const {
    if (width >= kVec) return Pixels<kHalf>::get(row(y) + x);
    float lane[kVec];
    for (int i = 0; i < kVec; ++i) lane[i] = at(i < width ? i : 0, y);
    return load(lane);
  }

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

// Rows whose maxima are kept together.
constexpr int kBand = 4;

// Sweep 1: the maxima of every band in lanes, and the largest value; false if some value is NaN or above 3e38.
template <bool kHalf>
static bool survey(const Map<kHalf>& map, float* band_max, float* maximum) {
  const float low = -__builtin_inff();
  Vec top = splat(low), total = zero();
  for (int y = 0; y < map.height; band_max += kVec) {
    Vec best = splat(low);
    const int end = y + kBand < map.height ? y + kBand : map.height;
    for (; y < end; ++y) {
      const auto* row = map.row(y);
      int x = 0;
      for (; x + 4 * kVec <= map.width; x += 4 * kVec) {
        Vec a = Pixels<kHalf>::get(row + x), b = Pixels<kHalf>::get(row + x + kVec);
        Vec c = Pixels<kHalf>::get(row + x + 2 * kVec), d = Pixels<kHalf>::get(row + x + 3 * kVec);
        keep(a), keep(b), keep(c), keep(d);
        best = max(best, max(max(a, b), max(c, d)));
        total += (a + b) + (c + d);
      }
      for (; x + kVec <= map.width; x += kVec) {
        const Vec a = Pixels<kHalf>::get(row + x);
        best = max(best, a);
        total += a;
      }
      if (x < map.width) {
        const Vec a = map.block(map.start, y);
        best = max(best, a);
        total += a;
      }
    }
    store(band_max, best);
    top = max(top, best);
  }
  *maximum = largest(top);
  // A maximum may lose a NaN, a sum never does; a sum that is NaN may also be inf - inf.
  const float check = sum(total);
  return (check == check && *maximum <= 3e38f) || map.usable();
}

// Largest pixels of the block at column x over rows y0..y1.
template <bool kHalf>
PORT_INLINE Vec column_max(const Map<kHalf>& map, int x, int y0, int y1) {
  Vec best = map.block(x, y0);
  for (int y = y0 + 1; y <= y1; ++y) best = max(best, map.block(x, y));
  return best;
}

// Sums of the weights of one block of columns: down the rows, and of those sums (each row times its number).
struct Sums {
  Vec column, rows;
  PORT_MEMBER void add(Vec weight) {
    column += weight;
    rows += column;
  }
};

// Sweep 2: the expectation of x and y under `weight`, over the box of what is above `bound`.
template <bool kHalf, typename Weight>
static void expect(const Map<kHalf>& map, const float* band_max, float bound, const Weight& weight, MapPeak* peak) {
  const Vec least = splat(bound);
  int top = 0, bottom = (map.height - 1) / kBand, first = 0, last = map.blocks - 1;
  while (top < bottom && !any_above(load(band_max + top * kVec), least)) ++top;
  while (bottom > top && !any_above(load(band_max + bottom * kVec), least)) --bottom;
  const int y0 = top * kBand, y1 = (bottom + 1) * kBand < map.height ? (bottom + 1) * kBand - 1 : map.height - 1;
  const auto column_of = [&map](int b) { return b + 1 == map.blocks ? map.start : b * kVec; };
  if (2 * (y1 - y0) < map.height) {  // in a tall box the search costs more than it saves
    while (first < last && !any_above(column_max(map, column_of(first), y0, y1), least)) ++first;
    while (last > first && !any_above(column_max(map, column_of(last), y0, y1), least)) --last;
  }
  const int x0 = column_of(first);
  Vec total = zero(), right = zero(), down = zero();
  const auto finish = [&](Sums sums, int b) {
    if (b + 1 == map.blocks) {
      sums.column = (Vec)((Bits)sums.column & map.fresh);
      sums.rows = (Vec)((Bits)sums.rows & map.fresh);
    }
    total += sums.column;
    down += sums.rows;
    right = fma(sums.column, numbered() + splat(static_cast<float>(column_of(b) - x0)), right);
  };
  int b = first;
  for (; b + 1 <= last; b += 2) {
    const int x = column_of(b), next = column_of(b + 1);
    Sums one = {zero(), zero()}, two = one;
    for (int y = y1; y >= y0; --y) {
      one.add(weight(map.block(x, y)));
      two.add(weight(map.block(next, y)));
    }
    finish(one, b);
    finish(two, b + 1);
  }
  if (b <= last) {
    const int x = column_of(b);
    Sums one = {zero(), zero()};
    for (int y = y1; y >= y0; --y) one.add(weight(map.block(x, y)));
    finish(one, b);
  }
  const float all = sum(total);
  if (all > 0.0f) {
    peak->x = static_cast<float>(x0) + sum(right) / all;
    peak->y = static_cast<float>(y0 - 1) + sum(down) / all;
  } else {  // an empty map answers its centre
    peak->x = 0.5f * static_cast<float>(map.width - 1);
    peak->y = 0.5f * static_cast<float>(map.height - 1);
  }
}

// 2^((v - maximum) * factor), relative error below 2e-7: at most 1; 2^-126 for whatever is smaller.
struct Exponential {
  Vec maximum, factor;
  PORT_MEMBER Vec operator()(Vec v) const {
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
    const Vec t = max((v - maximum) * factor, splat(-126.0f));
    const Vec shifted = t + magic;
    const Vec f = t - (shifted - magic);  // -0.5..0.5
    Vec p = splat(1.32647e-3f);
    p = fma(p, f, splat(9.67151e-3f));
    p = fma(p, f, splat(5.550734e-2f));
    p = fma(p, f, splat(2.4022242e-1f));
    p = fma(p, f, splat(6.9314698e-1f));
    p = fma(p, f, splat(1.0f));
    return (Vec)((Bits)p + ((Bits)shifted << 23));
  }
};

struct Clipped {
  Vec scale;
  PORT_MEMBER Vec operator()(Vec v) const { return max(v, zero()) * scale; }
};

template <bool kHalf>
static void first_largest(const Map<kHalf>& map, const float* band_max, float maximum, MapPeak* peak) {
  int y = 0;
  while (largest(load(band_max)) != maximum) y += kBand, band_max += kVec;
  for (;; ++y) {
    for (int x = 0; x < map.width; ++x) {
      if (map.at(x, y) != maximum) continue;
      peak->x = static_cast<float>(x);
      peak->y = static_cast<float>(y);
      return;
    }
  }
}

template <bool kHalf>
static void decode_map(const void* pixels, const MapShape& shape, float* band_max, MapPeak* peak) {
  const Map<kHalf> map(pixels, shape);
  peak->x = peak->y = __builtin_nanf("");
  peak->confidence = 0.0f;
  float maximum;
  if (!survey(map, band_max, &maximum)) return;
  if (shape.codec == MapCodec::kArgmax) {
    first_largest(map, band_max, maximum, peak);
  } else if (shape.codec == MapCodec::kSoftargmaxSum) {
    // Values whose sum would overflow are scaled by a power of two: the quotient does not change.
    const Clipped weight = {splat(maximum > 1e20f ? 0x1p-60f : 1.0f)};
    expect(map, band_max, 0.0f, weight, peak);
  } else if (maximum < -3e38f) {  // nothing but -inf weighs anything
    peak->x = 0.5f * static_cast<float>(map.width - 1);
    peak->y = 0.5f * static_cast<float>(map.height - 1);
  } else {
    const float below = maximum - shape.reach;
    // Where the reach drowns in the maximum's rounding, nothing is skipped.
    const float bound = below < maximum ? below : -__builtin_inff();
    const Exponential weight = {splat(maximum), splat(shape.factor)};
    expect(map, band_max, bound, weight, peak);
  }
  if (!(peak->x == peak->x && peak->y == peak->y)) return;
  const float right = static_cast<float>(map.width - 1), bottom = static_cast<float>(map.height - 1);
  const float x = __builtin_rintf(peak->x), y = __builtin_rintf(peak->y);  // half to even
  const int column = static_cast<int>(x < 0 ? 0 : x > right ? right : x);
  const int row = static_cast<int>(y < 0 ? 0 : y > bottom ? bottom : y);
  const float value = map.at(column, row);
  peak->confidence = value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
}

static void decode(const void* map, const MapShape& shape, float* scratch, MapPeak* peak) {
  if (shape.half) {
    decode_map<true>(map, shape, scratch, peak);
  } else {
    decode_map<false>(map, shape, scratch, peak);
  }
}
