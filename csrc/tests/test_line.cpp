// SPDX-License-Identifier: Apache-2.0
// What stands around the network, one rule of port_deploy/nn/line.py at a time.
#include <cmath>
#include <limits>
#include <vector>

#include "line.h"
#include "testing.h"

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int kJoints = 6;

port::ModelSpec make_spec() {
  port::ModelSpec spec;
  for (const char* name : {"a", "b", "c", "d", "e", "f"}) spec.joint_names.push_back(name);
  spec.min_visible = 2;
  spec.config.input_channels = 3;
  return spec;
}

struct Pose {
  std::vector<float> joints = {10, 20, 14, 20, 10, 26, 18, 30, 12, 22, 20, 40};
  std::vector<float> confidence = {0.9f, 0.8f, 0.7f, 0.1f, 0.6f, 0.2f};
  std::vector<float> inputs = std::vector<float>(kJoints * 3, -7.0f);
  std::vector<std::uint8_t> mask = std::vector<std::uint8_t>(kJoints, 7), changed = mask;
  port::PoseFrame frame{};

  bool prepare(const port::LineSettings& settings, float threshold = 0.3f) {
    return port::prepare_pose(settings, joints.data(), confidence.data(), threshold, inputs.data(), mask.data(),
                              changed.data(), &frame);
  }
};

bool near(float a, double b) { return std::fabs(static_cast<double>(a) - b) < 1e-5; }

}  // namespace

TEST(what_is_missing) {
  for (const float bad : {kNan, kInf, -kInf, 1.00001e6f, -2e6f}) {
    const float x[2] = {bad, 0.0f}, y[2] = {0.0f, bad};
    CHECK(port::is_missing(x) && port::is_missing(y));
  }
  const float edge[2] = {1e6f, -1e6f};
  CHECK(!port::is_missing(edge));
}

TEST(visible_frame) {
  Pose pose;
  CHECK(pose.prepare(port::LineSettings(make_spec())));
  const std::vector<std::uint8_t> want = {0, 0, 0, 1, 0, 1};
  CHECK(pose.mask == want && pose.changed == want);
  // Visible: (10,20) (14,20) (10,26) (12,22): mean (11.5, 22), squared offsets 2.25+4+6.25+4+2.25+16+.25+0 = 35.
  const double unit = std::sqrt(35.0 / 8.0);
  CHECK(pose.frame.centre[0] == 11.5 && pose.frame.centre[1] == 22.0 && std::fabs(pose.frame.unit - unit) < 1e-12);
  CHECK(near(pose.inputs[0], -1.5 / unit) && near(pose.inputs[1], -2.0 / unit) && near(pose.inputs[2], 0.9));
  CHECK(near(pose.inputs[9], 6.5 / unit) && near(pose.inputs[10], 8.0 / unit) && near(pose.inputs[11], 0.1));
  std::vector<float> framed(kJoints * 2, 2.0f), refined(kJoints * 2, -7.0f);
  port::finish_pose(port::LineSettings(make_spec()), pose.frame, framed.data(), pose.changed.data(), pose.joints.data(),
                    refined.data());
  CHECK(near(refined[6], 2 * unit + 11.5) && near(refined[7], 2 * unit + 22.0) && refined[0] == -7.0f);
}

TEST(paper_frame_goes_there_and_back) {
  port::ModelSpec spec = make_spec();
  spec.frame = port::Frame::kPaper;
  spec.frame_size = {200.0f, 400.0f};
  spec.root = 2, spec.axis = 3;
  const port::LineSettings settings(spec);
  Pose pose;
  CHECK(pose.prepare(settings));
  CHECK(near(pose.inputs[6], 0.0) && near(pose.inputs[7], 0.0));  // the root
  const double length = std::hypot(8.0 / 200.0, 4.0 / 400.0);
  CHECK(near(pose.inputs[9], length) && near(pose.inputs[10], 0.0));  // the axis lies on +x
  std::vector<float> framed, refined(kJoints * 2, -7.0f);
  for (int j = 0; j < kJoints; ++j) framed.insert(framed.end(), {pose.inputs[3 * j], pose.inputs[3 * j + 1]});
  const std::vector<std::uint8_t> all(kJoints, 1);
  port::finish_pose(settings, pose.frame, framed.data(), all.data(), pose.joints.data(), refined.data());
  for (int i = 0; i < 2 * kJoints; ++i) CHECK(near(refined[i], static_cast<double>(pose.joints[i])));

  Pose same;  // root and axis in one place: nothing is turned
  same.joints[6] = same.joints[4], same.joints[7] = same.joints[5];
  CHECK(same.prepare(settings) && same.frame.turn[0] == 1.0 && same.frame.turn[1] == 0.0);
  Pose lost;  // a missing root counts as lying at the visible joints' mean
  lost.joints[4] = kNan;
  CHECK(lost.prepare(settings) && lost.frame.root[0] == 0.0 && lost.frame.root[1] == 0.0);
}

TEST(missing_joints_are_masked_and_enter_at_the_origin) {
  Pose pose;
  pose.joints[8] = kInf;
  CHECK(pose.prepare(port::LineSettings(make_spec())));
  CHECK(pose.mask[4] == 1 && pose.inputs[12] == 0.0f && pose.inputs[13] == 0.0f && pose.inputs[14] == 0.0f);
  for (const float value : pose.inputs) CHECK(std::isfinite(value));
}

TEST(confidence_as_input) {
  port::ModelSpec spec = make_spec();
  spec.confidence_divisor = 0.5f;
  Pose pose;
  pose.confidence = {0.9f, 0.4f, kInf, -1.0f, 0.45f, kNan};
  CHECK(pose.prepare(port::LineSettings(spec)));
  const std::vector<std::uint8_t> want = {0, 0, 0, 1, 0, 1};
  CHECK(pose.mask == want);
  const double known[] = {1.0, 0.8, 1.0, 0.0, 0.9, 0.0};
  for (int j = 0; j < kJoints; ++j) CHECK(near(pose.inputs[3 * j + 2], known[j]));
}

TEST(zeroed_coordinates) {
  port::ModelSpec spec = make_spec();
  spec.config.zero_masked = true;
  Pose pose;
  CHECK(pose.prepare(port::LineSettings(spec)));
  CHECK(pose.inputs[9] == 0.0f && pose.inputs[10] == 0.0f && near(pose.inputs[11], 0.1) && pose.inputs[0] != 0.0f);
}

TEST(poses_that_are_left_alone) {
  const port::LineSettings settings(make_spec());
  const auto prepared = [](const port::LineSettings& s, std::vector<float> confidence) {
    Pose pose;
    pose.confidence = std::move(confidence);
    return pose.prepare(s);
  };
  CHECK(!prepared(settings, std::vector<float>(kJoints, 0.9f)));  // none masked
  CHECK(!prepared(settings, std::vector<float>(kJoints, 0.0f)));  // all masked
  CHECK(prepared(settings, {0.9f, 0.9f, 0, 0, 0, 0}));
  CHECK(!prepared(settings, {0.9f, 0, 0, 0, 0, 0}));  // below min_visible
  port::LineSettings strict = settings;
  strict.max_masked = 2;
  CHECK(prepared(strict, {0.9f, 0.9f, 0.9f, 0.9f, 0, 0}));
  CHECK(!prepared(strict, {0.9f, 0.9f, 0.9f, 0, 0, 0}));
  Pose point;  // visible joints in one place
  point.joints.assign(kJoints * 2, 5.0f);
  CHECK(!point.prepare(settings));
  Pose lost;
  lost.joints.assign(kJoints * 2, kNan);
  CHECK(!lost.prepare(settings));
  port::LineSettings every = settings;
  every.refine_all = true;
  Pose whole;
  whole.confidence.assign(kJoints, 0.9f);
  CHECK(whole.prepare(every) && whole.changed == std::vector<std::uint8_t>(kJoints, 1));
  CHECK(whole.mask == std::vector<std::uint8_t>(kJoints, 0));
  CHECK(!point.prepare(every) && !lost.prepare(every));
}

TEST(fusion_blends_but_not_into_missing_joints) {
  port::ModelSpec spec = make_spec();
  spec.fusion = 0.25f;
  const port::LineSettings settings(spec);
  Pose pose;
  pose.joints[10] = kNan;
  CHECK(pose.prepare(settings));
  std::vector<float> framed(kJoints * 2, 0.0f), refined = pose.joints;
  port::finish_pose(settings, pose.frame, framed.data(), pose.changed.data(), refined.data(), refined.data());
  CHECK(near(refined[6], 18 + 0.25 * (11.5 - 18)) && near(refined[7], 30 + 0.25 * (22.0 - 30)));
  CHECK(near(refined[10], 11.5) && near(refined[11], 22.0));
  CHECK(refined[0] == pose.joints[0]);
}

TEST(affine) {
  const float affine[6] = {2.0f, 0.5f, 10.0f, -1.0f, 3.0f, -20.0f};
  float joints[] = {1.0f, 2.0f, kNan, 0.0f};
  port::to_image(affine, 2, joints);
  CHECK(joints[0] == 13.0f && joints[1] == -15.0f && std::isnan(joints[2]) && std::isnan(joints[3]));
}

int main() { return port_test::run_tests(); }
