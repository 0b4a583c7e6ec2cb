// SPDX-License-Identifier: Apache-2.0
// The fused decode: heatmaps [B][N][H][W] to joints [B][N][2] in heatmap pixels, confidence and mask, eqs. (1), (2),
// (13). decode_map.h has the equations.
//
// Split     kBlockPerMap: a block of four warps takes a map, a warp a quarter of it, for few maps. Otherwise a warp
//           takes whole maps, four per block. The bits are the same.
// Memory    B N H W pixels read once, 13 B N bytes written. 80 bytes of shared memory per map.
// Sync      One block barrier with kBlockPerMap, none without (a warp's own).
// Numerics  fp32.
// Limits    H, W <= 4096, any strides.
// Test: csrc/tests/emulated/test_decode.cpp.
#pragma once

#include "decode_map.h"

namespace port::kernels {

constexpr int kDecodeThreads = kQuarters * kLanes;

PORT_DEVICE int64_t map_offset(const Maps& maps, int64_t map, int joints) {
  return map / joints * maps.stride_b + map % joints * maps.stride_n;
}

PORT_DEVICE void write_result(const Results& out, int64_t map, const Joint& joint, bool masked) {
  out.joints[2 * map] = joint.x;
  out.joints[2 * map + 1] = joint.y;
  if (out.confidence) out.confidence[map] = joint.confidence;
  if (out.mask) out.mask[map] = masked;
}

PORT_DEVICE void write_joint(const Results& out, int64_t map, const Joint& joint, float threshold) {
  write_result(out, map, joint, !(joint.confidence >= threshold) || is_missing(joint.x, joint.y));
}

// Grid: one block per map, or per four.
template <bool kBlockPerMap>
PORT_KERNEL(kDecodeThreads, 4)
decode_kernel(PORT_GRID_CONSTANT DecodeParams p) {
  const int warp = thread_index() / kLanes, lane = thread_index() % kLanes;
  Part* parts = reinterpret_cast<Part*>(dynamic_shared());
  wait_for_previous_kernel();
  if constexpr (kBlockPerMap) {
    const int64_t map = block_index(), offset = map_offset(p.maps, map, p.joints);
    const Part part = survey_quarter(p.maps, offset, warp);
    if (lane == 0) parts[warp] = part;
    sync_block();
    if (thread_index() == 0) write_joint(p.out, map, find_joint(p.maps, offset, parts), p.threshold);
  } else {
    const int64_t map = static_cast<int64_t>(block_index()) * kQuarters + warp;
    if (map >= p.count) return;
    const int64_t offset = map_offset(p.maps, map, p.joints);
    parts += warp * kQuarters;
    PORT_LOOP
    for (int q = 0; q < kQuarters; ++q) {
      const Part part = survey_quarter(p.maps, offset, q);
      if (lane == 0) parts[q] = part;
    }
    sync_warp();
    if (lane == 0) write_joint(p.out, map, find_joint(p.maps, offset, parts), p.threshold);
  }
}

}  // namespace port::kernels
