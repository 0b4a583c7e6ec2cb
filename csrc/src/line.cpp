// SPDX-License-Identifier: Apache-2.0
#include "line.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "checks.h"

namespace port {
namespace {

// The rest of a pose's statistics, gathered on the way.
struct Counts {
  int visible = 0, masked = 0;
};

Counts mask_pose(const LineSettings& s, const float* joints, const float* confidence, float threshold,
                 std::uint8_t* mask) {
  Counts counts;
  for (int j = 0; j < s.joints; ++j) {
    mask[j] = !(confidence[j] >= threshold) || is_missing(joints + 2 * j);
    ++(mask[j] ? counts.masked : counts.visible);
  }
  return counts;
}

// Centre of the visible joints, and the root mean square of their coordinates' distance from it.
double measure(const LineSettings& s, const float* joints, const std::uint8_t* mask, int visible, PoseFrame* frame) {
  const double count = std::max(visible, 1);
  double sum[2] = {0.0, 0.0}, squares = 0.0;
  for (int j = 0; j < s.joints; ++j) {
    if (mask[j]) continue;
    sum[0] += static_cast<double>(joints[2 * j]);
    sum[1] += static_cast<double>(joints[2 * j + 1]);
  }
  for (int axis = 0; axis < 2; ++axis) frame->centre[axis] = sum[axis] / count;
  for (int j = 0; j < s.joints; ++j) {
    if (mask[j]) continue;
    for (int axis = 0; axis < 2; ++axis) {
      const double offset = static_cast<double>(joints[2 * j + axis]) - frame->centre[axis];
      squares += offset * offset;
    }
  }
  return std::sqrt(squares / (2.0 * count));
}

// Offset from the centre; a missing joint lies at the centre.
void offset_of(const float* joint, const PoseFrame& frame, double offset[2]) {
  const bool missing = is_missing(joint);
  for (int axis = 0; axis < 2; ++axis) {
    offset[axis] = missing ? 0.0 : static_cast<double>(joint[axis]) - frame.centre[axis];
  }
}

void find_paper_frame(const LineSettings& s, const float* joints, PoseFrame* frame) {
  double root[2], axis[2];
  offset_of(joints + 2 * s.root, *frame, root);
  offset_of(joints + 2 * s.axis, *frame, axis);
  frame->root[0] = root[0] / s.frame_width;
  frame->root[1] = root[1] / s.frame_height;
  const double x = axis[0] / s.frame_width - frame->root[0], y = axis[1] / s.frame_height - frame->root[1];
  const double length = std::sqrt(x * x + y * y);
  const bool turned = length > 1e-12;
  frame->turn[0] = turned ? x / length : 1.0;
  frame->turn[1] = turned ? y / length : 0.0;
}

void enter_frame(const LineSettings& s, const PoseFrame& frame, const double offset[2], float framed[2]) {
  if (s.frame == Frame::kVisible) {
    for (int axis = 0; axis < 2; ++axis) framed[axis] = static_cast<float>(offset[axis] / frame.unit);
    return;
  }
  const double x = offset[0] / s.frame_width - frame.root[0], y = offset[1] / s.frame_height - frame.root[1];
  framed[0] = static_cast<float>(x * frame.turn[0] + y * frame.turn[1]);
  framed[1] = static_cast<float>(y * frame.turn[0] - x * frame.turn[1]);
}

void leave_frame(const LineSettings& s, const PoseFrame& frame, const float framed[2], double joint[2]) {
  const double x = static_cast<double>(framed[0]), y = static_cast<double>(framed[1]);
  if (s.frame == Frame::kVisible) {
    joint[0] = x * frame.unit + frame.centre[0];
    joint[1] = y * frame.unit + frame.centre[1];
    return;
  }
  joint[0] = (x * frame.turn[0] - y * frame.turn[1] + frame.root[0]) * s.frame_width + frame.centre[0];
  joint[1] = (x * frame.turn[1] + y * frame.turn[0] + frame.root[1]) * s.frame_height + frame.centre[1];
}

}  // namespace

LineSettings::LineSettings(const ModelSpec& spec)
    : joints(spec.joints()),
      channels(spec.config.input_channels),
      frame(spec.frame),
      frame_width(static_cast<double>(spec.frame_size[0])),
      frame_height(static_cast<double>(spec.frame_size[1])),
      root(spec.root),
      axis(spec.axis),
      min_visible(spec.min_visible),
      max_masked(spec.max_masked),
      refine_all(spec.refine_all),
      zero_masked(spec.config.zero_masked),
      fusion(static_cast<double>(spec.fusion)),
      confidence_divisor(static_cast<double>(spec.confidence_divisor)),
      std_scale(static_cast<double>(spec.std_scale)) {}

LineSettings line_settings(const ModelSpec& spec, const Options& options) {
  LineSettings settings(spec);
  settings.min_visible = options.min_visible.value_or(settings.min_visible);
  settings.max_masked = options.max_masked.value_or(settings.max_masked);
  settings.fusion = static_cast<double>(options.fusion.value_or(spec.fusion));
  if (options.refine) settings.refine_all = *options.refine == Refine::kAll;
  if (settings.min_visible < 2) {
    input_error("expected min_visible of at least 2, got " + std::to_string(settings.min_visible));
  }
  if (settings.max_masked < 0) {
    input_error("expected max_masked of at least 0, got " + std::to_string(settings.max_masked));
  }
  if (!(settings.fusion >= 0.0 && settings.fusion <= 1.0)) {
    input_error("expected fusion from 0 to 1, got " + std::to_string(settings.fusion));
  }
  return settings;
}

bool is_missing(const float joint[2]) {
  return !(std::fabs(joint[0]) <= kMaxCoordinate && std::fabs(joint[1]) <= kMaxCoordinate);
}

bool prepare_pose(const LineSettings& settings, const float* joints, const float* confidence, float threshold,
                  float* inputs, std::uint8_t* mask, std::uint8_t* changed, PoseFrame* frame) {
  const Counts counts = mask_pose(settings, joints, confidence, threshold, mask);
  if (counts.masked == 0 && !settings.refine_all) return false;
  if (counts.visible < settings.min_visible || counts.masked > settings.max_masked) return false;
  frame->unit = measure(settings, joints, mask, counts.visible, frame);
  if (!(frame->unit > kMinScale)) return false;
  if (settings.frame == Frame::kPaper) find_paper_frame(settings, joints, frame);

  for (int j = 0; j < settings.joints; ++j) {
    const float* joint = joints + 2 * j;
    float* input = inputs + settings.channels * j;
    const bool missing = is_missing(joint);
    double offset[2];
    offset_of(joint, *frame, offset);
    if (settings.zero_masked ? mask[j] != 0 : missing) {
      input[0] = input[1] = 0.0f;
    } else {
      enter_frame(settings, *frame, offset, input);
    }
    if (settings.channels == 3) {
      const double known = confidence[j] >= 0.0f && !missing ? static_cast<double>(confidence[j]) : 0.0;
      input[2] = static_cast<float>(std::min(known / settings.confidence_divisor, 1.0));
    }
    changed[j] = settings.refine_all || mask[j];
  }
  return true;
}

void finish_pose(const LineSettings& settings, const PoseFrame& frame, const float* framed, const std::uint8_t* changed,
                 const float* joints, float* refined) {
  for (int j = 0; j < settings.joints; ++j) {
    if (!changed[j]) continue;
    const float* joint = joints + 2 * j;
    double rebuilt[2];
    leave_frame(settings, frame, framed + 2 * j, rebuilt);
    const bool blend = settings.fusion != 1.0 && !is_missing(joint);
    for (int axis = 0; axis < 2; ++axis) {
      const double before = static_cast<double>(joint[axis]);
      refined[2 * j + axis] =
          static_cast<float>(blend ? before + settings.fusion * (rebuilt[axis] - before) : rebuilt[axis]);
    }
  }
}

void finish_std(const LineSettings& settings, const PoseFrame& frame, const float* log_std, const std::uint8_t* changed,
                float* to) {
  const bool paper = settings.frame == Frame::kPaper;  // x and y have units of their own: their geometric mean
  const double pixels = paper ? std::sqrt(settings.frame_width * settings.frame_height) : frame.unit;
  for (int j = 0; j < settings.joints; ++j) {
    to[j] = std::numeric_limits<float>::quiet_NaN();
    if (!changed[j]) continue;  // and its log sigma may be anything
    const double log_sigma = std::clamp(static_cast<double>(log_std[j]), kLogStdLow, kLogStdHigh);
    to[j] = static_cast<float>(std::exp(log_sigma) * pixels * settings.std_scale);
  }
}

void to_image(const float* affine, int count, float* joints) {
  double a[6];
  for (int i = 0; i < 6; ++i) a[i] = static_cast<double>(affine[i]);
  for (int j = 0; j < count; ++j) {
    const double x = static_cast<double>(joints[2 * j]), y = static_cast<double>(joints[2 * j + 1]);
    joints[2 * j] = static_cast<float>(a[0] * x + a[1] * y + a[2]);
    joints[2 * j + 1] = static_cast<float>(a[3] * x + a[4] * y + a[5]);
  }
}

}  // namespace port
