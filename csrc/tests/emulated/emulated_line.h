// SPDX-License-Identifier: Apache-2.0
// The line kernels on the emulated GPU behind one call, and poses to run them on.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "arguments.h"
#include "machine.h"
#include "model_file.h"
#include "pack.h"
#include "plan.h"

namespace port_test {

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

struct Answer {
  std::vector<float> joints, confidence;
  std::vector<std::uint8_t> mask;
  std::vector<float> std;  // empty: not wanted
  explicit Answer(std::size_t rows, bool with_std = false)
      : joints(2 * rows, -7.0f), confidence(rows, -7.0f), mask(rows, 7), std(with_std ? rows : 0, -7.0f) {}
  port::Output output() { return {joints.data(), confidence.data(), mask.data(), std.empty() ? nullptr : std.data()}; }
  bool operator==(const Answer& other) const {
    return same_bits(joints, other.joints) && same_bits(confidence, other.confidence) && mask == other.mask &&
           same_bits(std, other.std);
  }
};

struct Poses {
  std::int64_t batch = 0;
  std::vector<float> joints, confidence;  // [B][N][2], [B][N]
};

// A pose of about 200 pixels somewhere in an image; about a third of its joints below 0.3.
inline Poses make_poses(std::int64_t batch, int count, unsigned seed) {
  Poses poses;
  poses.batch = batch;
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  for (std::int64_t b = 0; b < batch; ++b) {
    const float x = 2000.0f * unit(random), y = 1000.0f * unit(random);
    for (int j = 0; j < count; ++j) {
      poses.joints.push_back(x + 200.0f * unit(random));
      poses.joints.push_back(y + 200.0f * unit(random));
      poses.confidence.push_back(unit(random) * 0.9f);
    }
  }
  return poses;
}

// The blob where a device would have it: on 128 bytes.
struct DeviceModel {
  port::kernels::Network network;
  port::kernels::LineRules rules;
  bool variance;
  std::unique_ptr<unsigned char, void (*)(void*)> memory{nullptr, &std::free};

  DeviceModel(const port::Model& model, port::Precision precision) : variance(model.variance()) {
    port::DeviceBlob blob = port::pack_for_device(model.data().spec, model.data().tensors, precision);
    void* bytes = nullptr;
    if (posix_memalign(&bytes, 128, blob.bytes.size()) != 0) std::abort();
    memory.reset(static_cast<unsigned char*>(bytes));
    std::memcpy(bytes, blob.bytes.data(), blob.bytes.size());
    network = blob.network;
    network.blob = memory.get();
    rules = port::rules_of(port::LineSettings(model.data().spec));
  }
};

struct Run {
  port::Precision precision = port::Precision::kFloat16;
  port::CudaVariant variant = port::CudaVariant::kBlock;
  port::DeviceLimits limits;
  unsigned seed = 0;
  int skip_barrier = -1, skip_cluster_barrier = -1;
  bool tolerant = false;
  int grid = 0;  // blocks (or clusters) at most; 0: one for every group of poses
};

// Launches line_kernel for `params`, whose network, rules and data are filled in. In emulated_line.cpp.
port::emulated::Counts launch_line(port::kernels::LineParams params, const Run& run);

// From joints and confidence; with std where the model has a variance.
inline Answer refine(const DeviceModel& device, const Poses& poses, const Run& run, float threshold = 0.3f) {
  Answer answer(poses.confidence.size(), device.variance);
  port::kernels::LineParams params{};  // no maps
  params.net = device.network;
  params.rules = device.rules;
  params.joints = poses.joints.data();
  params.confidence = poses.confidence.data();
  params.out = port::results_of(answer.output());
  params.batch = poses.batch;
  params.threshold = threshold;
  launch_line(params, run);
  return answer;
}

}  // namespace port_test
