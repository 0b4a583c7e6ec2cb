// SPDX-License-Identifier: Apache-2.0
// Sweep 1 of decode_kernel.h, which says what it is for: how a map is read, its band maxima, and the box of pixels that
// sweep 2 weighs. Included once per instruction set, after kernels/simd.h. Test: csrc/tests/test_decode.cpp.

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

#if PORT_VECTOR == 16
PORT_INLINE bool any_at_least(Vec v, Vec bound) { return _mm512_cmp_ps_mask(v, bound, _CMP_GE_OQ) != 0; }
#elif PORT_VECTOR == 8
PORT_INLINE bool any_at_least(Vec v, Vec bound) { return _mm256_movemask_ps(_mm256_cmp_ps(v, bound, _CMP_GE_OQ)) != 0; }
#else
typedef int32_t Truth __attribute__((vector_size(16)));
PORT_INLINE bool any(Truth lanes) {
#if defined(__SSE2__)
  return __builtin_ia32_movmskps((Vec)lanes) != 0;
#else
  return (lanes[0] | lanes[1] | lanes[2] | lanes[3]) != 0;
#endif
}
PORT_INLINE bool any_at_least(Vec v, Vec bound) { return any(v >= bound); }
#endif

// Fewer pixels than a vector holds, filled up with the first of them.
template <bool kHalf>
__attribute__((noinline)) static Vec filled(const typename Pixels<kHalf>::Type* run, int size) {
  float lane[kVec];
  for (int i = 0; i < kVec; ++i) lane[i] = Pixels<kHalf>::one(run + (i < size ? i : 0));
  return load(lane);
}

// kNarrow: narrower than a vector. Apart, since the call that fills one up would sit in every loop.
template <bool kHalf, bool kNarrow>
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
  void centre(float xy[2]) const {  // the answer of an empty map
    xy[0] = 0.5f * static_cast<float>(width - 1);
    xy[1] = 0.5f * static_cast<float>(height - 1);
  }
  float at(int x, int y) const { return Pixels<kHalf>::one(row(y) + x); }

  int column(int b) const { return b + 1 == blocks ? start : b * kVec; }  // where block b begins

  // Block at column x of row y. A map narrower than one vector is filled up with its first pixel.
  PORT_MEMBER Vec block(int x, int y) const {
    return kNarrow ? filled<kHalf>(row(y), width) : Pixels<kHalf>::get(row(y) + x);
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

// What sweep 1 gathers of a run of pixels.
//
// A maximum may lose a NaN; a product and a sum never do, so a chain of multiply-adds over the pixels finds one, three
// pixels at a time and in units that the maxima leave idle. It may also be NaN where no pixel is (inf - inf, 0 * inf):
// then every pixel is looked at.
struct Survey {
  Vec best, check, other_check;  // two chains: one would wait for itself

  template <bool kHalf>
  PORT_MEMBER void add_four(const typename Pixels<kHalf>::Type* run) {
    Vec a = Pixels<kHalf>::get(run), b = Pixels<kHalf>::get(run + kVec);
    Vec c = Pixels<kHalf>::get(run + 2 * kVec), d = Pixels<kHalf>::get(run + 3 * kVec);
    keep(a), keep(b), keep(c), keep(d);
    best = max(best, max(max(a, b), max(c, d)));
    const Vec next = fma(fma(a, b, c), d, other_check);
    other_check = check, check = next;
  }

  template <bool kHalf, bool kNarrow>
  PORT_MEMBER void add(const typename Pixels<kHalf>::Type* run, int size) {
    if (kNarrow && size < kVec) {
      const Vec a = filled<kHalf>(run, size);
      best = max(best, a);
      check += a;
      return;
    }
    int i = 0;
    for (; i + 4 * kVec <= size; i += 4 * kVec) add_four<kHalf>(run + i);
    for (; i < size; i += kVec) {  // the last one overlaps the one before it
      const Vec a = Pixels<kHalf>::get(run + (i + kVec <= size ? i : size - kVec));
      best = max(best, a);
      check += a;
    }
  }
};

// Sweep 1: the maxima of every band in lanes, and the largest value; false if some value is NaN or above 3e38.
template <bool kHalf, bool kNarrow>
static bool survey(const Map<kHalf, kNarrow> map, float* band_max, float* maximum) {
  const Vec low = splat(-__builtin_inff());
  Vec top = low;
  Survey found = {low, zero(), zero()};
  const int band = kBand * map.width;
  int y = 0;
  if (map.stride == map.width && band % (4 * kVec) == 0) {
    // A band is one run: a loop over short rows would cost more than what is in it.
    const auto* run = map.data;
    for (; y + kBand <= map.height; y += kBand, band_max += kVec) {
      found.best = low;
      for (const auto* end = run + band; run != end; run += 4 * kVec) found.add_four<kHalf>(run);
      store(band_max, found.best);
      top = max(top, found.best);
    }
  }
  for (; y < map.height; y += kBand, band_max += kVec) {
    const int rows = map.height - y < kBand ? map.height - y : kBand;
    found.best = low;
    for (int i = 0; i < rows; ++i) found.add<kHalf, kNarrow>(map.row(y + i), map.width);
    store(band_max, found.best);
    top = max(top, found.best);
  }
  *maximum = largest(top);
  const float check = sum(found.check + found.other_check);
  return (check == check && *maximum <= 3e38f) || map.usable();
}

// What sweep 2 needs to know of a map.
struct Found {
  float maximum;
  int y0, y1;   // rows, first and last
  int b0, b1;   // blocks of columns, likewise
  bool usable;  // no NaN, nothing above 3e38
};

// Where the box is at most 1 / kLowBox of the map, its columns are searched, too.
constexpr int kLowBox = 2;

// Sweep 1 and what follows from it.
template <bool kHalf, bool kNarrow>
static Found look(const Map<kHalf, kNarrow> map, const MapShape& shape, float* band_max) {
  Found found = {0.0f, 0, map.height - 1, 0, map.blocks - 1, false};
  found.usable = survey(map, band_max, &found.maximum);
  float bound = 1e-38f;  // softargmax-sum: what is not positive weighs nothing
  if (shape.codec == MapCodec::kArgmax) {
    bound = found.maximum;
  } else if (shape.codec == MapCodec::kSoftargmax) {
    bound = found.maximum - shape.reach;
    if (!(bound < found.maximum)) return found;  // the reach drowns in the maximum's rounding: nothing is skipped
  }
  // Of the bands none is branched on: a mispredicted branch costs as much as ten of them.
  const Vec least = splat(bound);
  const int count = (map.height + kBand - 1) / kBand;
  int first = -1, last = 0;
  for (int chunk = 0; chunk < count; chunk += 64) {
    const int size = count - chunk < 64 ? count - chunk : 64;
    uint64_t above = 0;
    for (int i = 0; i < size; ++i) {
      above |= static_cast<uint64_t>(any_at_least(load(band_max + (chunk + i) * kVec), least)) << i;
    }
    if (above == 0) continue;
    if (first < 0) first = chunk + __builtin_ctzll(above);
    last = chunk + 63 - __builtin_clzll(above);
  }
  if (first < 0) return found;
  found.y0 = first * kBand;
  if ((last + 1) * kBand < map.height) found.y1 = (last + 1) * kBand - 1;
  if (shape.codec == MapCodec::kArgmax || map.blocks > 64) return found;
  if (kLowBox * (found.y1 - found.y0) > map.height) return found;  // a tall box: the search costs more than it saves
  uint64_t above = 0;
  for (int b = 0; b < map.blocks; ++b) {
    const int x = map.column(b);
    Vec best = map.block(x, found.y0);
    for (int y = found.y0 + 1; y <= found.y1; ++y) best = max(best, map.block(x, y));
    above |= static_cast<uint64_t>(any_at_least(best, least)) << b;
  }
  if (above != 0) found.b0 = __builtin_ctzll(above), found.b1 = 63 - __builtin_clzll(above);
  return found;
}
