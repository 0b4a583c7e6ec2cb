// SPDX-License-Identifier: Apache-2.0
// The codecs that start from the largest pixel, and SimCC, on a real GPU against the processor: types, both sides of
// the crossover from a block to a warp per map, faint and broken maps. Outputs start poisoned.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "device_array.h"
#include "gpu_main.h"
#include "port/cuda.hpp"
#include "testing.h"

namespace {

using port::DType;
using port::HeatmapView;
using port_test::DeviceArray;

struct Answer {
  std::vector<float> joints, confidence;
  std::vector<std::uint8_t> mask;
  explicit Answer(std::size_t count) : joints(2 * count), confidence(count), mask(count) {}
  port::Output output() { return {joints.data(), confidence.data(), mask.data()}; }
};

// decode(output) into memory of the device.
template <typename Decode>
Answer on_gpu(std::size_t count, const Decode& decode) {
  const DeviceArray<float> joints(2 * count), confidence(count);
  const DeviceArray<std::uint8_t> mask(count);
  decode(port::Output{joints.data(), confidence.data(), mask.data()});
  Answer answer(count);
  answer.joints = joints.get(), answer.confidence = confidence.get(), answer.mask = mask.get();
  return answer;
}

void compare(const Answer& got, const Answer& want, float allowed, const std::string& name) {
  CHECK_CASE(got.confidence == want.confidence && got.mask == want.mask, name);
  for (std::size_t i = 0; i < want.joints.size(); ++i) {
    const float a = got.joints[i], b = want.joints[i];
    CHECK_CASE(std::isnan(b) ? std::isnan(a) : std::fabs(a - b) <= allowed, name + ": " + std::to_string(a - b));
  }
}

std::vector<float> blobs(std::size_t count, int height, int width, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  std::vector<float> maps;
  for (std::size_t i = 0; i < count; ++i) {
    const float x0 = unit(random) * static_cast<float>(width), y0 = unit(random) * static_cast<float>(height);
    const float peak = i % 7 == 3 ? 4e-3f : 0.1f + 0.8f * unit(random);  // udp clips the faint ones
    for (int p = 0; p < height * width; ++p) {
      const float dx = static_cast<float>(p % width) - x0, dy = static_cast<float>(p / width) - y0;
      maps.push_back(peak * std::exp(-(dx * dx + dy * dy) / 8.0f));
    }
    if (i % 11 == 5) maps[maps.size() - 7] = NAN;
  }
  return maps;
}

// What is left of float32 in bfloat16, by cutting off.
std::vector<std::uint16_t> cut(std::vector<float>* values) {
  std::vector<std::uint16_t> half;
  for (float& v : *values) {
    std::uint32_t bits;
    std::memcpy(&bits, &v, 4);
    half.push_back(static_cast<std::uint16_t>(bits >> 16));
    bits &= 0xffff0000u;
    std::memcpy(&v, &bits, 4);
  }
  return half;
}

}  // namespace

TEST(peaks_of_every_type_and_batch) {
  for (const std::int64_t batch : {std::int64_t{1}, std::int64_t{5}, std::int64_t{250}}) {
    for (const auto& [height, width] : {std::pair<int, int>{64, 48}, {23, 37}}) {
      constexpr int n = 17;
      const auto count = static_cast<std::size_t>(batch * n);
      std::vector<float> maps = blobs(count, height, width, static_cast<unsigned>(batch));
      const std::vector<std::uint16_t> half = cut(&maps);
      const DeviceArray<float> device_maps(maps);
      const DeviceArray<std::uint16_t> device_half(half);
      for (const port::PeakCodec codec : {port::PeakCodec::kMsra, port::PeakCodec::kDark, port::PeakCodec::kUdp}) {
        Answer want(count);
        const auto host = HeatmapView::dense(maps.data(), DType::kFloat32, batch, n, height, width);
        port::decode_peaks(host, codec, 13, 0.3f, want.output());
        for (const bool narrow : {false, true}) {
          auto view = host;
          view.data = narrow ? static_cast<const void*>(device_half.data()) : device_maps.data();
          view.dtype = narrow ? DType::kBfloat16 : DType::kFloat32;
          const Answer got = on_gpu(
              count, [&](const port::Output& out) { port::cuda_decode_peaks(view, codec, 13, 0.3f, out, 0, nullptr); });
          const std::string name = std::string(port::to_string(codec)) + " of " + std::to_string(batch);
          compare(got, want, codec == port::PeakCodec::kMsra ? 0.0f : 5e-3f, name);
        }
      }
    }
  }
}

TEST(simcc_of_every_type_and_batch) {
  std::mt19937 random(9);
  std::uniform_real_distribution<float> unit(-0.1f, 1.0f);
  for (const std::int64_t batch : {std::int64_t{1}, std::int64_t{7}, std::int64_t{250}}) {
    constexpr int n = 17, bins_x = 384, bins_y = 511;
    const auto count = static_cast<std::size_t>(batch * n);
    std::vector<float> x(count * bins_x), y(count * bins_y);
    for (float& v : x) v = unit(random);
    for (float& v : y) v = unit(random);
    x[3] = NAN;
    const std::vector<std::uint16_t> half = cut(&x);
    const DeviceArray<std::uint16_t> device_x(half);
    const DeviceArray<float> device_y(y);
    for (const port::SimccScore score : {port::SimccScore::kMin, port::SimccScore::kMean}) {
      Answer want(count);
      auto along_x = HeatmapView::dense(x.data(), DType::kFloat32, batch, n, 1, bins_x);
      auto along_y = HeatmapView::dense(y.data(), DType::kFloat32, batch, n, 1, bins_y);
      port::decode_simcc(along_x, along_y, 3.0f, score, 0.98f, want.output());
      along_x.data = device_x.data(), along_x.dtype = DType::kBfloat16, along_y.data = device_y.data();
      const Answer got = on_gpu(count, [&](const port::Output& out) {
        port::cuda_decode_simcc(along_x, along_y, 3.0f, score, 0.98f, out, 0, nullptr);
      });
      compare(got, want, 0.0f, "SimCC of " + std::to_string(batch));
    }
  }
}

int main() { return port_test::run_gpu_tests(); }
