// SPDX-License-Identifier: Apache-2.0
// SimCC vectors [B][N][bins], one along x and one along y, to joints [B][N][2] in crop pixels, confidence and mask: the
// largest bin of each over split_ratio, as csrc/src/decode_simcc.cpp has it. A vector is a map of one row.
//
// Split     `together`: a block's four warps share a joint, a warp surveys a quarter of each vector; else a warp takes
// a
//           joint. The bits are the same.
// Memory    Every bin read once, 13 B N bytes written. Shared: the parts of two vectors per joint.
// Sync      One block barrier with `together`, none without (a warp's own).
// Numerics  fp32; no sum but the mean of two maxima.
// Limits    bins <= 4096, any strides.
// Test: csrc/tests/emulated/test_simcc.cpp.
#pragma once

#include "peak_kernel.h"

namespace port::kernels {

constexpr uint32_t kSimccSharedBytes = 2 * sizeof(Part) * kQuarters * kQuarters;

// Grid: one block per joint, or per four.
PORT_KERNEL(kDecodeThreads, 4)
simcc_kernel(PORT_GRID_CONSTANT SimccParams p) {
  const int warp = thread_index() / kLanes;
  const bool together = p.together != 0;
  Part* const parts = reinterpret_cast<Part*>(dynamic_shared()) + (together ? 0 : warp) * 2 * kQuarters;
  wait_for_previous_kernel();
  const int64_t row = together ? block_index() : static_cast<int64_t>(block_index()) * kQuarters + warp;
  if (row >= p.count) return;
  PORT_LOOP
  for (int axis = 0; axis < 2; ++axis) {
    Maps vectors = p.axes[axis];
    vectors.codec = MapCodec::kArgmax;
    survey_map(vectors, map_offset(vectors, row, p.joints), together, parts + axis * kQuarters);
  }
  sync_map(together);
  if (together && warp > 0) return;
  const int lane = thread_index() % kLanes, axis = lane % 2;  // a lane per axis
  Maps vectors = p.axes[axis];
  vectors.codec = MapCodec::kArgmax;
  const int64_t offset = map_offset(vectors, row, p.joints);
  const float place = find_joint(vectors, offset, parts + axis * kQuarters).x;
  const float most = place >= 0.0f ? pixel_at(vectors, offset + static_cast<int>(place)) : NAN;
  const float x = shuffle_from(place, 0), y = shuffle_from(place, 1);  // in bins
  const float a = shuffle_from(most, 0), b = shuffle_from(most, 1);
  const float score = p.mean ? 0.5f * (a + b) : b < a ? b : a;
  const bool found = score > 0.0f && a == a && b == b;
  Joint joint = {NAN, NAN, 0.0f};
  if (found) joint = {x / p.split_ratio, y / p.split_ratio, fminf(score, 1.0f)};
  if (lane == 0) write_result(p.out, row, joint, !found || !(joint.confidence >= p.threshold));
}

}  // namespace port::kernels
