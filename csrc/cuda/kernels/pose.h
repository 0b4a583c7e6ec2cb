// SPDX-License-Identifier: Apache-2.0
// What stands around the network for one pose, eqs. (13)-(14): mask, frame, inputs; unframe, blend. One warp, a lane
// per joint; the rules of class Refine in port_deploy/nn/line.py, as csrc/src/line.cpp has them for the processor.
//
// Numerics  fp32. All lengths are measured from the first visible joint, so that rounding is relative to the pose's
//           size and not to where it lies in the image.
// Sync      Shuffles only; the caller orders shared memory.
// Limits    N <= 32.
// Test: csrc/tests/emulated/test_line.cpp.
#pragma once

#include "decode_map.h"
#include "layout.h"

namespace port::kernels {

// pose->joints and confidence to everything else but framed. Every lane calls it.
PORT_DEVICE void prepare_pose(const LineRules& rules, int count, int channels, float threshold, Pose* pose) {
  const int lane = thread_index() % kLanes;
  const bool present = lane < count;
  const float x = present ? pose->joints[2 * lane] : 0.0f, y = present ? pose->joints[2 * lane + 1] : 0.0f;
  const float confidence = present ? pose->confidence[lane] : 0.0f;
  const bool missing = is_missing(x, y);
  const bool masked = present && (!(confidence >= threshold) || missing);
  const bool visible = present && !masked;
  const uint32_t masks = ballot(masked), seen = ballot(visible);
  const int masked_count = count_bits(masks), visible_count = count_bits(seen);
  bool active =
      (masked_count > 0 || rules.refine_all) && visible_count >= rules.min_visible && masked_count <= rules.max_masked;

  Frame frame;
  const int first = seen ? first_bit(seen) : 0;
  frame.origin[0] = shuffle_from(x, first);
  frame.origin[1] = shuffle_from(y, first);
  const float from[2] = {x - frame.origin[0], y - frame.origin[1]};
  const float inverse = 1.0f / static_cast<float>(visible_count > 0 ? visible_count : 1);
  float offset[2], squares = 0.0f;
  for (int axis = 0; axis < 2; ++axis) {
    frame.centre[axis] = warp_sum(visible ? from[axis] : 0.0f) * inverse;
    offset[axis] = missing ? 0.0f : from[axis] - frame.centre[axis];
    squares += visible ? offset[axis] * offset[axis] : 0.0f;
  }
  frame.unit = sqrtf(warp_sum(squares) * (0.5f * inverse));
  active = active && frame.unit > kLeastScale;

  float framed[2];
  frame.root[0] = frame.root[1] = frame.turn[1] = 0.0f;
  frame.turn[0] = 1.0f;
  if (!rules.paper_frame) {
    const float unit = active ? frame.unit : 1.0f;
    framed[0] = offset[0] / unit;
    framed[1] = offset[1] / unit;
  } else {
    const float sx = offset[0] / rules.frame_width, sy = offset[1] / rules.frame_height;
    frame.root[0] = shuffle_from(sx, rules.root);
    frame.root[1] = shuffle_from(sy, rules.root);
    const float rx = sx - frame.root[0], ry = sy - frame.root[1];
    const float ax = shuffle_from(rx, rules.axis), ay = shuffle_from(ry, rules.axis);
    const float length = sqrtf(ax * ax + ay * ay);
    if (length > 1e-12f) frame.turn[0] = ax / length, frame.turn[1] = ay / length;
    framed[0] = rx * frame.turn[0] + ry * frame.turn[1];
    framed[1] = ry * frame.turn[0] - rx * frame.turn[1];
  }
  if (present) {
    const bool unread = rules.zero_masked ? masked : missing;
    float* input = pose->inputs + channels * lane;
    input[0] = unread ? 0.0f : framed[0];
    input[1] = unread ? 0.0f : framed[1];
    if (channels == 3) {
      const float known = confidence >= 0.0f && !missing ? confidence / rules.confidence_divisor : 0.0f;
      input[2] = fminf(known, 1.0f);
    }
  }
  if (lane == 0) {
    pose->masked = masks;
    pose->changed = !active ? 0u : rules.refine_all ? 0xffffffffu : masks;
    pose->active = active ? 1 : 0;
    pose->frame = frame;
  }
}

// The refined joint of this lane, from pose->framed. pose->changed says which lanes have one.
PORT_DEVICE void rebuild_joint(const LineRules& rules, const Pose& pose, int lane, float joint[2]) {
  const Frame& f = pose.frame;
  const float x = pose.framed[2 * lane], y = pose.framed[2 * lane + 1];
  float rebuilt[2];  // from the origin
  if (!rules.paper_frame) {
    rebuilt[0] = fmaf(x, f.unit, f.centre[0]);
    rebuilt[1] = fmaf(y, f.unit, f.centre[1]);
  } else {
    rebuilt[0] = fmaf(x * f.turn[0] - y * f.turn[1] + f.root[0], rules.frame_width, f.centre[0]);
    rebuilt[1] = fmaf(x * f.turn[1] + y * f.turn[0] + f.root[1], rules.frame_height, f.centre[1]);
  }
  const float* before = pose.joints + 2 * lane;
  const bool blend = rules.fusion != 1.0f && !is_missing(before[0], before[1]);
  for (int axis = 0; axis < 2; ++axis) {
    if (blend) {
      const float from = before[axis] - f.origin[axis];
      rebuilt[axis] = fmaf(rules.fusion, rebuilt[axis] - from, from);
    }
    joint[axis] = f.origin[axis] + rebuilt[axis];
  }
}

// Pixels: standard deviation of a coordinate from log sigma, whose NaN it keeps.
PORT_DEVICE float std_of(const LineRules& rules, const Frame& frame, float log_sigma) {
  const float clamped = log_sigma < kLeastLogStd ? kLeastLogStd : log_sigma > kMostLogStd ? kMostLogStd : log_sigma;
  return exp2_approx(clamped * 1.44269504f) * ((rules.paper_frame ? 1.0f : frame.unit) * rules.std_scale);
}

}  // namespace port::kernels
