// SPDX-License-Identifier: Apache-2.0
// The codecs that start from the largest pixel: heatmaps [B][N][H][W] to joints [B][N][2] in heatmap pixels, confidence
// and mask. The rules are those of csrc/src/decode_peak.cpp, whose names the functions here have.
//
//   msra       a quarter pixel towards the larger neighbour, each axis by itself
//   dark, udp  one Newton step on the logarithm of the blurred map, over two pixels or over one
//
// Split     `together`: a block's four warps share a map, a warp surveys a quarter of it; else a warp takes a map. Then
//           each warp blurs around the peak for itself: a lane takes a sum along a row, then one of the 25 sums along
//           columns. Where the step clips, the whole map is blurred for its largest value: a warp takes 32 columns of a
//           quarter of the rows at a time, a lane a column, and `together` the warps take turns.
// Memory    B N H W pixels read once, and (blur + 4)^2 again around each peak from the caches. Shared: the parts, a
//           maximum per warp, and blur x 32 floats per warp: the last `blur` rows of the lanes' columns, each lane's
//           own, so that no map needs memory of its size. The sums along rows around the peak lie there before.
// Sync      `together`: a block barrier, and another where the step clips, which all its warps find alike.
// Numerics  fp32. Products and sums in the processor's order and none fused: what cancels exactly there, as on flat
//           maps and straight ridges, where there is no step, cancels exactly here.
// Limits    H, W <= 4096, any strides, blurs from 9 to 63.
// Test: csrc/tests/emulated/test_peaks.cpp.
#pragma once

#include "decode_kernel.h"

namespace port::kernels {

constexpr int kReach = 2;  // pixels beside the peak that a step reads
constexpr int kSide = 2 * kReach + 1;
constexpr float kMostFloat = 0x1.fffffep127f;

// Shared memory of a block: parts for a map per warp and axis, the warps' maxima, their rings.
constexpr uint32_t kPartsBytes = sizeof(Part) * kQuarters * kQuarters;
PORT_BOTH uint32_t peak_shared_bytes(PeakRule rule, int blur) {
  const uint32_t ring = rule == PeakRule::kMsra ? 0 : static_cast<uint32_t>(blur) * kLanes;
  return kPartsBytes + (kQuarters + kQuarters * ring) * static_cast<uint32_t>(sizeof(float));
}

// This warp's quarters of the map at `offset`: one, or all of them.
PORT_DEVICE void survey_map(const Maps& maps, int64_t offset, bool together, Part* parts) {
  const int warp = thread_index() / kLanes;
  PORT_LOOP
  for (int q = together ? warp : 0; q < kQuarters; q += together ? kQuarters : 1) {
    const Part part = survey_quarter(maps, offset, q);
    if (thread_index() % kLanes == 0) parts[q] = part;
  }
}

PORT_DEVICE void sync_map(bool together) {
  if (together) {
    sync_block();
  } else {
    sync_warp();
  }
}

PORT_DEVICE int on_axis(int at, int size) { return at < 0 ? 0 : at < size ? at : size - 1; }

PORT_DEVICE float sign(float v) { return static_cast<float>((v > 0.0f) - (v < 0.0f)); }

PORT_DEVICE void quarter(const Maps& maps, int64_t offset, int x, int y, Joint* joint) {
  const int64_t at = offset + y * maps.stride_h + x;
  const bool inner_x = x > 1 && x < maps.width - 1 && y > 0;
  const bool inner_y = y > 1 && y < maps.height - 1 && x > 0;
  if (inner_x) joint->x += 0.25f * sign(pixel_at(maps, at + 1) - pixel_at(maps, at - 1));
  if (inner_y) joint->y += 0.25f * sign(pixel_at(maps, at + maps.stride_h) - pixel_at(maps, at - maps.stride_h));
}

// Row y blurred at column x; zeros beyond the map.
PORT_DEVICE float blur_row(const PeakParams& p, int64_t offset, int x, int y) {
  float sum = 0.0f;
  if (y < 0 || y >= p.maps.height) return sum;
  const int first = x - p.blur / 2;
  const int64_t row = offset + y * p.maps.stride_h + first;
  PORT_LOOP
  for (int t = 0; t < p.blur; t += kFlight) {
    float v[kFlight];
    PORT_UNROLL
    for (int i = 0; i < kFlight; ++i) {
      const bool there = t + i < p.blur && first + t + i >= 0 && first + t + i < p.maps.width;
      v[i] = there ? pixel_at(p.maps, row + t + i) : 0.0f;
    }
    PORT_UNROLL
    for (int i = 0; i < kFlight; ++i) sum += product(p.taps[t + i], v[i]);
  }
  return sum;
}

// The blurred map at the pixels around (x, y), those beyond the border read on it: lane 5 j + i has that at
// (x + i - 2, y + j - 2). across: [blur + 4][5], this warp's.
PORT_DEVICE float blur_around(const PeakParams& p, int64_t offset, int x, int y, float* across) {
  const int lane = thread_index() % kLanes, half = p.blur / 2;
  const int top = on_axis(y - kReach, p.maps.height) - half;
  const int rows = on_axis(y + kReach, p.maps.height) + half - top + 1;
  PORT_LOOP
  for (int at = lane; at < rows * kSide; at += kLanes) {
    const int column = on_axis(x + at % kSide - kReach, p.maps.width);
    across[at] = blur_row(p, offset, column, top + at / kSide);
  }
  sync_warp();
  const int j = lane / kSide < kSide ? lane / kSide : 0, i = lane % kSide;
  const float* column = across + (on_axis(y + j - kReach, p.maps.height) - half - top) * kSide + i;
  float sum = 0.0f;
  PORT_LOOP
  for (int t = 0; t < p.blur; ++t) sum += product(p.taps[t], column[t * kSide]);
  sync_warp();  // across is written over
  return sum;
}

// This warp's share of the largest value of the blurred map. ring: [blur][32].
PORT_DEVICE float blurred_maximum(const PeakParams& p, int64_t offset, bool together, float* ring) {
  const int warp = thread_index() / kLanes, lane = thread_index() % kLanes, half = p.blur / 2;
  const int strips = (p.maps.width + kLanes - 1) / kLanes, rows = (p.maps.height + kQuarters - 1) / kQuarters;
  float* const column = ring + lane;
  float most = -INFINITY;
  PORT_LOOP
  for (int part = together ? warp : 0; part < strips * kQuarters; part += together ? kQuarters : 1) {
    const int x = part / kQuarters * kLanes + lane, first = part % kQuarters * rows;
    const int end = first + rows < p.maps.height ? first + rows : p.maps.height;
    int slot = 0;  // of row y; the slots after it, round and round, hold the rows before it
    PORT_LOOP
    for (int y = first - half; y < end + half; ++y) {
      column[slot * kLanes] = x < p.maps.width ? blur_row(p, offset, x, y) : -INFINITY;
      if (++slot == p.blur) slot = 0;
      if (y < first + half) continue;
      float sum = 0.0f;
      int from = slot;
      PORT_LOOP
      for (int t = 0; t < p.blur; ++t) {
        sum += product(p.taps[t], column[from * kLanes]);
        if (++from == p.blur) from = 0;
      }
      most = fmaxf(most, sum);
    }
  }
  return warp_max(most);
}

// One Newton step. `joint` is the largest pixel; every thread of the map calls it, and has it moved.
PORT_DEVICE void newton(const PeakParams& p, int64_t offset, bool together, float* tops, float* ring, Joint* joint) {
  const int lane = thread_index() % kLanes;
  const int x = static_cast<int>(joint->x), y = static_cast<int>(joint->y);
  const bool udp = p.rule == PeakRule::kUdp;
  if (!udp && !(x > 1 && x < p.maps.width - 2 && y > 1 && y < p.maps.height - 2)) return;
  const float blurred = blur_around(p, offset, x, y, ring);
  const float low = udp ? 1e-3f : 1e-10f, high = udp ? 50.0f : kMostFloat;
  const float peak = pixel_at(p.maps, offset + y * p.maps.stride_h + x);
  const int reach = udp ? 1 : 2;  // what the step reads lies in this square
  const int beside = lane % kSide - kReach, beneath = lane / kSide - kReach;
  const bool read = beside <= reach && -beside <= reach && beneath <= reach && -beneath <= reach;
  // A factor s with 1 <= s <= peak / largest clips nothing: then it need not be known.
  float scale = 1.0f;
  if (ballot(read && !(blurred >= low)) != 0 || !(peak <= high)) {
    float most = blurred_maximum(p, offset, together, ring);
    if (together) {
      if (lane == 0) tops[thread_index() / kLanes] = most;
      sync_block();
      PORT_UNROLL
      for (int i = 0; i < kQuarters; ++i) most = fmaxf(most, tops[i]);
    }
    scale = peak / most;
  }
  // As std::min(std::max(...)) has it: NaN stays.
  float value = product(blurred, scale);
  value = value < low ? low : value;
  value = high < value ? high : value;
  value = logf(value);
  const auto at = [&](int dx, int dy) { return shuffle_from(value, (kReach + dy) * kSide + kReach + dx); };

  const float centre = at(0, 0), right = at(1, 0), left = at(-1, 0), below = at(0, 1), above = at(0, -1);
  const float low_right = at(1, 1), high_left = at(-1, -1);
  const float gx = 0.5f * (right - left), gy = 0.5f * (below - above);
  float xx, yy, xy;
  if (udp) {
    constexpr float kEps = 0x1p-23f;
    xx = right - 2.0f * centre + left + kEps;
    yy = below - 2.0f * centre + above + kEps;
    xy = 0.5f * (low_right - right - below + 2.0f * centre - left - above + high_left);
  } else {
    const float high_right = at(1, -1), low_left = at(-1, 1);
    const float far_right = at(2, 0), far_left = at(-2, 0), far_below = at(0, 2), far_above = at(0, -2);
    xx = 0.25f * (far_right - 2.0f * centre + far_left);
    yy = 0.25f * (far_below - 2.0f * centre + far_above);
    xy = 0.25f * (low_right - high_right - low_left + high_left);
  }
  const float determinant = product(xx, yy) - product(xy, xy);
  const float dx = (product(xy, gy) - product(yy, gx)) / determinant;
  const float dy = (product(xy, gx) - product(xx, gy)) / determinant;
  if (!(fabsf(dx) <= kMostFloat && fabsf(dy) <= kMostFloat)) return;
  joint->x += dx;
  joint->y += dy;
}

// Grid: one block per map, or per four.
PORT_KERNEL(kDecodeThreads, 4)
peak_kernel(PORT_GRID_CONSTANT PeakParams p) {
  const int warp = thread_index() / kLanes;
  const bool together = p.together != 0;
  unsigned char* const shared = dynamic_shared();
  Part* const parts = reinterpret_cast<Part*>(shared) + (together ? 0 : warp) * kQuarters;
  float* const tops = reinterpret_cast<float*>(shared + kPartsBytes);
  wait_for_previous_kernel();
  const int64_t map = together ? block_index() : static_cast<int64_t>(block_index()) * kQuarters + warp;
  if (map >= p.count) return;
  const int64_t offset = map_offset(p.maps, map, p.joints);
  Maps maps = p.maps;
  maps.codec = MapCodec::kArgmax;  // known here, so that the other codecs are left out of the code
  survey_map(maps, offset, together, parts);
  sync_map(together);
  Joint joint = find_joint(maps, offset, parts);
  if (!(joint.confidence > 0.0f)) {  // missing already, or nothing above 0
    joint = {NAN, NAN, 0.0f};
  } else if (p.rule == PeakRule::kMsra) {
    quarter(maps, offset, static_cast<int>(joint.x), static_cast<int>(joint.y), &joint);
  } else {
    newton(p, offset, together, tops, tops + kQuarters + warp * p.blur * kLanes, &joint);
  }
  if (thread_index() % (together ? kDecodeThreads : kLanes) == 0) write_joint(p.out, map, joint, p.threshold);
}

}  // namespace port::kernels
