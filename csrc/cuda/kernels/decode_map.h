// SPDX-License-Identifier: Apache-2.0
// Eqs. (1)-(2) for one heatmap on a GPU: device functions that the decode kernel and the line kernels share.
//
//   softargmax      weight = exp(T (v - max)),   softargmax-sum  weight = max(v, 0),   argmax  first largest
//   x = sum of weight * column / sum of weight,  y likewise over rows; confidence = map at the rounded joint, 0..1
//
// Split     A map is cut into kQuarters runs of chunks; a warp takes one quarter, its lanes every 32nd chunk. Quarters
//           are merged in order, whoever made them: a block's warps side by side or one warp after another, so the bits
//           of a joint do not depend on the launch.
// Memory    Every pixel is read once, in chunks of 16 bytes (kFlight of them in flight per lane) where the map lies on
//           16 bytes and its width is whole chunks, else pixel by pixel. The maximum is not known in advance: sums are
//           rescaled when a larger one comes.
// Numerics  fp32. Weights relative to 2^-22 (ex2.approx). Where sums of softargmax-sum could overflow (a value beyond
//           1e20) the map is read again with values scaled by 2^-60.
// Limits    H, W <= 4096.
// Test: csrc/tests/emulated/test_decode.cpp.
#pragma once

#include <device/intrinsics.h>

#include "params.h"

namespace port::kernels {

using namespace port::device;

constexpr int kQuarters = 4;
constexpr int kFlight = 4;
constexpr float kLargestPixel = 3e38f;  // what is not below it (NaN, +inf) makes the map unusable

PORT_DEVICE float warp_sum(float value) {
  PORT_UNROLL
  for (int step = 16; step > 0; step /= 2) value += shuffle_xor(value, step);
  return value;
}
PORT_DEVICE float warp_max(float value) {
  PORT_UNROLL
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, shuffle_xor(value, step));
  return value;
}

// What a quarter, or several, say of a map.
struct Part {
  float top;                 // largest value, at least -3e38
  float total, right, down;  // sums of weight, weight * column, weight * row
  int32_t first;             // argmax: its pixel, H * W if there is none; -1: the map is unusable
};

struct Joint {
  float x, y, confidence;
};

PORT_DEVICE Part empty_part(const Maps& maps) {
  const bool argmax = maps.codec == MapCodec::kArgmax;
  return {argmax ? -INFINITY : -kLargestPixel, 0.0f, 0.0f, 0.0f, maps.height * maps.width};
}

// b's pixels come after a's.
PORT_DEVICE Part merge(const Maps& maps, const Part& a, const Part& b) {
  Part sum = a;
  if (a.first < 0 || b.first < 0) {
    sum.first = -1;
    return sum;
  }
  if (maps.codec == MapCodec::kArgmax) {
    return b.top > a.top || (b.top == a.top && b.first < a.first) ? b : a;
  }
  sum.top = fmaxf(a.top, b.top);
  float ka = 1.0f, kb = 1.0f;
  if (maps.codec == MapCodec::kSoftargmax) {
    ka = exp2_approx((a.top - sum.top) * maps.factor);
    kb = exp2_approx((b.top - sum.top) * maps.factor);
  }
  sum.total = a.total * ka + b.total * kb;
  sum.right = a.right * ka + b.right * kb;
  sum.down = a.down * ka + b.down * kb;
  return sum;
}

// All lanes receive the merged part. The order is the same for both partners of an exchange.
PORT_DEVICE Part merge_lanes(const Maps& maps, Part part) {
  const int lane = thread_index() % kLanes;
  PORT_LOOP
  for (int step = 1; step < kLanes; step *= 2) {
    const Part other = {shuffle_xor(part.top, step), shuffle_xor(part.total, step), shuffle_xor(part.right, step),
                        shuffle_xor(part.down, step), shuffle_xor(part.first, step)};
    part = lane & step ? merge(maps, other, part) : merge(maps, part, other);
  }
  return part;
}

// Pixels of one size: kCount of them are 16 bytes.
template <typename T>
struct Chunk;

template <>
struct Chunk<float> {
  static constexpr int kCount = 4;
  static PORT_DEVICE void unpack(const Words& words, Pixel, float (&v)[4]) {
    PORT_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = bits_to_float(words.w[i]);
  }
  static PORT_DEVICE float one(const float* p, Pixel) { return *p; }
};

template <>
struct Chunk<uint16_t> {
  static constexpr int kCount = 8;
  static PORT_DEVICE void unpack(const Words& words, Pixel pixel, float (&v)[8]) {
    PORT_UNROLL
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = pixel == Pixel::kHalf ? Half::low(words.w[i]) : Bfloat::low(words.w[i]);
      v[2 * i + 1] = pixel == Pixel::kHalf ? Half::high(words.w[i]) : Bfloat::high(words.w[i]);
    }
  }
  static PORT_DEVICE float one(const uint16_t* p, Pixel pixel) {
    return pixel == Pixel::kHalf ? Half::low(*p) : Bfloat::low(*p);
  }
};

// The pixel that lies `at` pixels behind the first.
PORT_DEVICE float pixel_at(const Maps& maps, int64_t at) {
  return maps.pixel == Pixel::kFloat ? static_cast<const float*>(maps.data)[at]
                                     : Chunk<uint16_t>::one(static_cast<const uint16_t*>(maps.data) + at, maps.pixel);
}

// kCount pixels of row y from column x on.
template <int kCount>
PORT_DEVICE void take(const Maps& maps, float scale, const float (&v)[kCount], int x, int y, Part* part) {
  float most = v[0];
  PORT_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (!(v[i] <= kLargestPixel)) part->first = -1;
    most = fmaxf(most, v[i]);
  }
  if (maps.codec == MapCodec::kArgmax) {
    if (part->first < 0) return;
    PORT_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (v[i] > part->top) part->top = v[i], part->first = y * maps.width + x + i;
    }
    return;
  }
  float total = 0.0f, right = 0.0f;
  if (maps.codec == MapCodec::kSoftargmax) {
    const float top = fmaxf(part->top, most);
    const float keep = exp2_approx((part->top - top) * maps.factor);
    part->top = top;
    part->total *= keep;
    part->right *= keep;
    part->down *= keep;
    PORT_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const float weight = exp2_approx((v[i] - top) * maps.factor);
      total += weight;
      right = fmaf(weight, static_cast<float>(i), right);
    }
  } else {
    part->top = fmaxf(part->top, most);
    PORT_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const float weight = fmaxf(v[i], 0.0f) * scale;
      total += weight;
      right = fmaf(weight, static_cast<float>(i), right);
    }
  }
  part->total += total;
  part->right += fmaf(total, static_cast<float>(x), right);
  part->down = fmaf(total, static_cast<float>(y), part->down);
}

// This lane's share of a quarter, in chunks of kCount pixels (16 bytes, or one pixel).
template <typename T, bool kWide>
PORT_DEVICE Part take_quarter(const Maps& maps, const T* map, int quarter, float scale) {
  constexpr int kCount = kWide ? Chunk<T>::kCount : 1;
  const int lane = thread_index() % kLanes;
  const int per_row = maps.width / kCount, chunks = per_row * maps.height;
  const int length = (chunks + kQuarters - 1) / kQuarters;
  const int end = (quarter + 1) * length, last = end < chunks ? end : chunks;
  int at = quarter * length + lane;
  int y = at / per_row, x = at % per_row;  // in chunks
  const int rows = kLanes / per_row, columns = kLanes % per_row;
  Part part = empty_part(maps);
  const auto step = [&] {
    x += columns;
    y += rows;
    if (x >= per_row) x -= per_row, ++y;
  };
  PORT_LOOP
  for (; at + (kFlight - 1) * kLanes < last; at += kFlight * kLanes) {
    int xs[kFlight], ys[kFlight];
    Words words[kFlight];
    float single[kFlight];
    PORT_UNROLL
    for (int i = 0; i < kFlight; ++i) {
      const T* from = map + y * maps.stride_h + x * kCount;
      if constexpr (kWide) {
        words[i] = load_streamed(from);
      } else {
        single[i] = Chunk<T>::one(from, maps.pixel);
      }
      xs[i] = x;
      ys[i] = y;
      step();
    }
    PORT_UNROLL
    for (int i = 0; i < kFlight; ++i) {
      float v[kCount];
      if constexpr (kWide) {
        Chunk<T>::unpack(words[i], maps.pixel, v);
      } else {
        v[0] = single[i];
      }
      take(maps, scale, v, xs[i] * kCount, ys[i], &part);
    }
  }
  PORT_LOOP
  for (; at < last; at += kLanes) {
    const T* from = map + y * maps.stride_h + x * kCount;
    float v[kCount];
    if constexpr (kWide) {
      Chunk<T>::unpack(load_streamed(from), maps.pixel, v);
    } else {
      v[0] = Chunk<T>::one(from, maps.pixel);
    }
    take(maps, scale, v, x * kCount, y, &part);
    step();
  }
  return part;
}

template <typename T>
PORT_DEVICE Part warp_quarter(const Maps& maps, int64_t offset, int quarter, float scale) {
  const T* map = static_cast<const T*>(maps.data) + offset;
  const uint64_t bits = reinterpret_cast<uint64_t>(map) | static_cast<uint64_t>(maps.stride_h) * sizeof(T) |
                        static_cast<uint64_t>(maps.width) * sizeof(T);
  const Part part = bits % 16 == 0 ? take_quarter<T, true>(maps, map, quarter, scale)
                                   : take_quarter<T, false>(maps, map, quarter, scale);
  return merge_lanes(maps, part);
}

// A warp's view of one quarter of the map at `offset` (in pixels); every lane has the answer.
PORT_DEVICE Part survey_quarter(const Maps& maps, int64_t offset, int quarter) {
  float scale = 1.0f;
  PORT_LOOP
  for (;;) {
    const Part part = maps.pixel == Pixel::kFloat ? warp_quarter<float>(maps, offset, quarter, scale)
                                                  : warp_quarter<uint16_t>(maps, offset, quarter, scale);
    if (maps.codec != MapCodec::kSoftargmaxSum || part.top <= 1e20f || scale < 1.0f) return part;
    scale = 0x1p-60f;
  }
}

// Parts of all quarters in order to the joint. By one thread.
PORT_DEVICE Joint find_joint(const Maps& maps, int64_t offset, const Part* parts) {
  Part whole = parts[0];
  float most = whole.top;
  PORT_LOOP
  for (int q = 1; q < kQuarters; ++q) most = fmaxf(most, parts[q].top);
  if (maps.codec == MapCodec::kSoftargmaxSum && most > 1e20f) {  // quarters of another scale weigh nothing
    whole = empty_part(maps);
    PORT_LOOP
    for (int q = 0; q < kQuarters; ++q) {
      Part part = parts[q];
      if (part.top <= 1e20f) part.total *= 0x1p-60f, part.right *= 0x1p-60f, part.down *= 0x1p-60f;
      whole = merge(maps, whole, part);
    }
  } else {
    PORT_LOOP
    for (int q = 1; q < kQuarters; ++q) whole = merge(maps, whole, parts[q]);
  }
  if (whole.first < 0) return {NAN, NAN, 0.0f};
  const float right = static_cast<float>(maps.width - 1), bottom = static_cast<float>(maps.height - 1);
  Joint joint;
  if (maps.codec == MapCodec::kArgmax) {
    const int pixel = whole.first < maps.height * maps.width ? whole.first : 0;  // nothing but -inf: the first
    joint.x = static_cast<float>(pixel % maps.width);
    joint.y = static_cast<float>(pixel / maps.width);
  } else if (whole.total > 0.0f) {
    joint.x = whole.right / whole.total;
    joint.y = whole.down / whole.total;
  } else {  // an empty map answers its centre
    joint.x = 0.5f * right;
    joint.y = 0.5f * bottom;
  }
  const int x = static_cast<int>(fminf(fmaxf(rintf(joint.x), 0.0f), right));  // half to even
  const int y = static_cast<int>(fminf(fmaxf(rintf(joint.y), 0.0f), bottom));
  joint.confidence = fminf(fmaxf(pixel_at(maps, offset + y * maps.stride_h + x), 0.0f), 1.0f);
  return joint;
}

PORT_DEVICE bool is_missing(float x, float y) { return !(fabsf(x) <= kMissing && fabsf(y) <= kMissing); }

}  // namespace port::kernels
