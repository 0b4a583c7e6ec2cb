// SPDX-License-Identifier: Apache-2.0
// What the GPU is compared with: PORT in double (network_reference.h) between the processor's own line around it. With
// `round`, every operand of the encoder's products is rounded as a framework would in that precision.
#pragma once

#include "emulated_line.h"
#include "line.h"
#include "network_reference.h"

namespace port_test {

inline Answer oracle(const port::Model& model, const Poses& poses, float threshold, const Round& round = keep) {
  const port::ModelSpec& spec = model.data().spec;
  const port::LineSettings settings(spec);
  const Reference network{spec, model.data().tensors, round};
  const auto n = static_cast<std::size_t>(spec.joints());
  Answer answer(poses.confidence.size(), spec.config.variance);
  answer.joints = poses.joints;
  answer.confidence = poses.confidence;
  std::fill(answer.mask.begin(), answer.mask.end(), std::uint8_t{0});
  std::fill(answer.std.begin(), answer.std.end(), std::numeric_limits<float>::quiet_NaN());
  for (std::size_t b = 0; b < static_cast<std::size_t>(poses.batch); ++b) {
    std::vector<float> inputs(n * 3), framed(n * 2);
    std::vector<std::uint8_t> mask(n), changed(n);
    port::PoseFrame frame;
    const float* joints = poses.joints.data() + b * n * 2;
    if (!port::prepare_pose(settings, joints, poses.confidence.data() + b * n, threshold, inputs.data(), mask.data(),
                            changed.data(), &frame)) {
      continue;
    }
    std::vector<double> log_sigma;
    const std::vector<double> out = network(inputs.data(), mask.data(), spec.config.variance ? &log_sigma : nullptr);
    for (std::size_t i = 0; i < out.size(); ++i) framed[i] = static_cast<float>(out[i]);
    port::finish_pose(settings, frame, framed.data(), changed.data(), joints, answer.joints.data() + b * n * 2);
    if (spec.config.variance) {
      const std::vector<float> log_std(log_sigma.begin(), log_sigma.end());
      port::finish_std(settings, frame, log_std.data(), changed.data(), answer.std.data() + b * n);
    }
    std::copy(changed.begin(), changed.end(), answer.mask.begin() + static_cast<std::ptrdiff_t>(b * n));
  }
  return answer;
}

struct Distance {
  double largest = 0.0, root_mean_square = 0.0;  // pixels, over coordinates
};

inline Distance distance(const Answer& got, const Answer& want) {
  Distance d;
  for (std::size_t i = 0; i < got.joints.size(); ++i) {
    const float a = got.joints[i], b = want.joints[i];
    double e = std::isnan(a) == std::isnan(b) ? 0.0 : 1e9;
    if (!std::isnan(a) && !std::isnan(b) && a != b) e = std::fabs(static_cast<double>(a) - static_cast<double>(b));
    d.largest = std::max(d.largest, e);
    d.root_mean_square += e * e / static_cast<double>(got.joints.size());
  }
  d.root_mean_square = std::sqrt(d.root_mean_square);
  return d;
}

// Of std: errors relative to the true value, over rebuilt joints. 1e9 where only one has a number.
inline Distance std_distance(const Answer& got, const Answer& want) {
  Distance d;
  double count = 0.0;
  for (std::size_t i = 0; i < want.std.size(); ++i) {
    const double a = static_cast<double>(got.std[i]), b = static_cast<double>(want.std[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    const double e = std::isnan(a) || std::isnan(b) ? 1e9 : std::fabs(a / b - 1.0);
    d.largest = std::max(d.largest, e);
    d.root_mean_square += e * e;
    count += 1.0;
  }
  d.root_mean_square = std::sqrt(d.root_mean_square / std::max(count, 1.0));
  return d;
}

// What rounding alone may explain where few joints make `allowed` a noisy measure.
inline double std_floor(port::Precision precision) {
  return precision == port::Precision::kFloat32 ? 2e-5 : precision == port::Precision::kFloat16 ? 2e-4 : 2e-3;
}

inline double round_to(port::Precision precision, double x) {
  const auto value = static_cast<float>(x);
  if (precision == port::Precision::kBfloat16) return to_bf16(x);
  if (precision == port::Precision::kFloat32) return x;
  // 11 bits, and a whole number of 2^-24
  int exponent;
  std::frexp(value, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - 11, -24));
  return std::nearbyint(static_cast<double>(value) / unit) * unit;
}

}  // namespace port_test
