// SPDX-License-Identifier: Apache-2.0
// What the tests of the decode kernels share: results that start poisoned, maps of every type, and blobs.
#pragma once

#include <device/intrinsics.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "port/port.hpp"

namespace port_test {

using port::DType;
using port::HeatmapView;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Decoded {
  std::vector<float> joints, confidence;
  std::vector<std::uint8_t> mask;
  explicit Decoded(std::size_t maps) : joints(2 * maps, -7.0f), confidence(maps, -7.0f), mask(maps, 7) {}
  port::Output output() { return {joints.data(), confidence.data(), mask.data()}; }
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Maps of one size in one type, and the same as float32 for the reference.
struct Batch {
  HeatmapView view, plain;
  std::vector<float> floats;
  std::vector<std::uint16_t> halves;
};

inline Batch batch_of(std::vector<float> values, DType dtype, int poses, int joints, int height, int width) {
  Batch batch;
  batch.floats = std::move(values);
  for (float& v : batch.floats) {
    using namespace port::device;
    if (dtype == DType::kFloat32) break;
    const std::uint32_t bits = dtype == DType::kFloat16 ? Half::pack(v, 0.0f) : Bfloat::pack(v, 0.0f);
    batch.halves.push_back(static_cast<std::uint16_t>(bits));
    v = dtype == DType::kFloat16 ? Half::low(bits) : Bfloat::low(bits);
  }
  const void* data = dtype == DType::kFloat32 ? static_cast<const void*>(batch.floats.data()) : batch.halves.data();
  batch.view = HeatmapView::dense(data, dtype, poses, joints, height, width);
  batch.plain = HeatmapView::dense(batch.floats.data(), DType::kFloat32, poses, joints, height, width);
  return batch;
}

inline std::vector<float> blobs(std::mt19937& random, int count, int height, int width) {
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  std::vector<float> maps;
  for (int i = 0; i < count; ++i) {
    const float x0 = unit(random) * static_cast<float>(width - 1), y0 = unit(random) * static_cast<float>(height - 1);
    const float peak = unit(random), sigma = 0.8f + 3.0f * unit(random);
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        const float dx = static_cast<float>(x) - x0, dy = static_cast<float>(y) - y0;
        maps.push_back(peak * std::exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)) + 0.02f * (unit(random) - 0.5f));
      }
    }
  }
  return maps;
}

// Two poses of three joints, 20 x 24, out of `big` [6][40][40]: a crop, joints and poses backwards, `shift` floats from
// where data would lie on 16 bytes.
inline HeatmapView flipped_crop(const std::vector<float>& big, int shift) {
  HeatmapView view;
  view.data = big.data() + 5 * 1600 + 40 * 3 + shift;
  view.batch = 2, view.joints = 3, view.height = 20, view.width = 24;
  view.stride_b = -1600 * 3, view.stride_n = -1600, view.stride_h = 40;
  return view;
}

}  // namespace port_test
