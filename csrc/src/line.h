// SPDX-License-Identifier: Apache-2.0
// What stands around the network for one pose: mask, frame, inputs, unframe, blend (eqs. 13-14). Follows class Refine
// of port_deploy/nn/line.py statement by statement, in double where it sums. Test: csrc/tests/test_line.cpp.
#pragma once

#include <cstdint>

#include "model.h"

namespace port {

struct LineSettings {
  int joints = 0;    // N
  int channels = 2;  // of the network's input
  Frame frame = Frame::kVisible;
  double frame_width = 1.0, frame_height = 1.0;
  int root = 0, axis = 1;
  int min_visible = 2, max_masked = 0;
  bool refine_all = false, zero_masked = false;
  double fusion = 1.0;
  double confidence_divisor = 1.0;
  double std_scale = 1.0;

  explicit LineSettings(const ModelSpec& spec);
};

// Those of a model with options in their place. Error(kInput): one is out of range.
LineSettings line_settings(const ModelSpec& spec, const Options& options);

// How to get back from framed joints to pixels.
struct PoseFrame {
  double centre[2];  // mean of the visible joints
  double unit;       // visible: pixels per unit
  double root[2];    // paper: framed root before it was subtracted
  double turn[2];    // paper: cosine and sine
};

bool is_missing(const float joint[2]);

// joints [N][2], confidence [N] -> inputs [N][channels], mask [N], changed [N]; all written if the answer is true.
// True: the pose is refined and something in it changes, so the network has to run. False: it comes back as it is.
bool prepare_pose(const LineSettings& settings, const float* joints, const float* confidence, float threshold,
                  float* inputs, std::uint8_t* mask, std::uint8_t* changed, PoseFrame* frame);

// framed [N][2], the network's answer -> refined [N][2], which may be `joints`; only changed rows are written.
void finish_pose(const LineSettings& settings, const PoseFrame& frame, const float* framed, const std::uint8_t* changed,
                 const float* joints, float* refined);

// log_std [N], the network's -> `to` [N], sigma in image pixels; NaN where `changed` says that a joint stays.
void finish_std(const LineSettings& settings, const PoseFrame& frame, const float* log_std, const std::uint8_t* changed,
                float* to);

// Heatmap pixels to image pixels: joints [N][2] in place through affine [2][3].
void to_image(const float* affine, int count, float* joints);

}  // namespace port
