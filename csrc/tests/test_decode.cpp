// SPDX-License-Identifier: Apache-2.0
// The decode kernels of every instruction set against eqs. (1)-(2) in double: sizes, types, strides, and maps that
// hurt.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "decode.h"
#include "dispatch.h"
#include "half.h"
#include "testing.h"

namespace {

using port::Codec;
using port::HeatmapView;
using port::Isa;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr Codec kCodecs[] = {Codec::kSoftargmax, Codec::kSoftargmaxSum, Codec::kArgmax};

struct Joint {
  double x, y;
};

// Straight from the docstring of Decode in port_deploy/nn/line.py.
Joint reference(const std::vector<float>& map, int height, int width, Codec codec, double temperature) {
  Joint joint{0.0, 0.0};
  double total = 0.0, top = -HUGE_VAL;
  int best = 0;
  for (int i = 0; i < height * width; ++i) {
    const double v = static_cast<double>(map[static_cast<std::size_t>(i)]);
    if (!(v <= static_cast<double>(3e38f))) return {NAN, NAN};
    if (v > top) top = v, best = i;
  }
  if (codec == Codec::kArgmax) return {static_cast<double>(best % width), static_cast<double>(best / width)};
  for (int i = 0; i < height * width; ++i) {
    const double v = static_cast<double>(map[static_cast<std::size_t>(i)]);
    const double w = codec == Codec::kSoftargmax ? std::exp(temperature * (v - top)) : std::max(v, 0.0);
    joint.x += w * (i % width);
    joint.y += w * (i / width);
    total += w;
  }
  if (total == 0.0) return {0.5 * (width - 1), 0.5 * (height - 1)};
  return {joint.x / total, joint.y / total};
}

struct Decoded {
  std::vector<float> joints, confidence;
  std::vector<std::uint8_t> mask;
};

Decoded decode(const HeatmapView& view, Codec codec, Isa isa, float temperature = 40.0f, float threshold = 0.3f,
               int threads = 1) {
  const std::size_t rows = static_cast<std::size_t>(view.batch * view.joints);
  Decoded d{std::vector<float>(rows * 2, -7.0f), std::vector<float>(rows, -7.0f), std::vector<std::uint8_t>(rows, 7)};
  port::decode(view, codec, temperature, threshold, {d.joints.data(), d.confidence.data(), d.mask.data()}, threads,
               isa);
  return d;
}

Decoded decode_one(const std::vector<float>& map, int height, int width, Codec codec, Isa isa,
                   float temperature = 40.0f) {
  return decode(HeatmapView::dense(map.data(), port::DType::kFloat32, 1, 1, height, width), codec, isa, temperature);
}

// Blobs as detectors emit them: a peak of any height, ripples around zero.
std::vector<float> blob(std::mt19937& random, int height, int width) {
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  const float x0 = unit(random) * static_cast<float>(width - 1), y0 = unit(random) * static_cast<float>(height - 1);
  const float peak = unit(random), sigma = 0.8f + 3.0f * unit(random);
  std::vector<float> map;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const float dx = static_cast<float>(x) - x0, dy = static_cast<float>(y) - y0;
      map.push_back(peak * std::exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)) + 0.02f * (unit(random) - 0.5f));
    }
  }
  return map;
}

std::string label(Isa isa, Codec codec, int height, int width) {
  return std::string(port::to_string(isa)) + " " + port::to_string(codec) + " " + std::to_string(height) + "x" +
         std::to_string(width);
}

void check_map(const std::vector<float>& map, int height, int width, Codec codec, Isa isa, float temperature) {
  const Joint want = reference(map, height, width, codec, static_cast<double>(temperature));
  const Decoded got = decode_one(map, height, width, codec, isa, temperature);
  const std::string name = label(isa, codec, height, width) + " of " + std::to_string(map[0]) + "...";
  if (std::isnan(want.x)) {
    CHECK_CASE(std::isnan(got.joints[0]) && std::isnan(got.joints[1]) && got.confidence[0] == 0.0f, name);
    CHECK_CASE(got.mask[0] == 1, name);
    return;
  }
  const double allowed = 0x1p-16 + 2e-6 * std::max(height, width);  // what the kernel skips, and fp32
  CHECK_CASE(std::fabs(static_cast<double>(got.joints[0]) - want.x) < allowed, name);
  CHECK_CASE(std::fabs(static_cast<double>(got.joints[1]) - want.y) < allowed, name);
  const int x = static_cast<int>(std::nearbyint(got.joints[0])), y = static_cast<int>(std::nearbyint(got.joints[1]));
  const float value = map[static_cast<std::size_t>(y * width + x)];
  CHECK_CASE(got.confidence[0] == std::clamp(value, 0.0f, 1.0f), name);
  CHECK_CASE(got.mask[0] == !(got.confidence[0] >= 0.3f), name);
}

}  // namespace

TEST(every_size_codec_and_isa) {
  std::mt19937 random(1);
  const std::pair<int, int> sizes[] = {{64, 64}, {64, 48}, {48, 64}, {96, 72}, {46, 46},  {92, 92}, {17, 33},
                                       {1, 1},   {1, 64},  {64, 1},  {3, 5},   {5, 15},   {2, 16},  {2, 17},
                                       {7, 31},  {9, 65},  {128, 4}, {4, 128}, {256, 192}};
  for (const Isa isa : port::available_isas()) {
    for (const auto& [height, width] : sizes) {
      for (const Codec codec : kCodecs) {
        for (const float temperature : {1.0f, 40.0f, 1000.0f}) {
          check_map(blob(random, height, width), height, width, codec, isa, temperature);
        }
      }
    }
  }
}

TEST(two_peaks_far_apart) {
  for (const Isa isa : port::available_isas()) {
    for (const Codec codec : kCodecs) {
      std::vector<float> map(64 * 64, 0.0f);
      map[3 * 64 + 2] = 0.9f, map[60 * 64 + 61] = 0.89f;
      check_map(map, 64, 64, codec, isa, 40.0f);
    }
  }
}

// Values far from zero, where exp(T v) is no float, and where it just is one.
TEST(any_offset) {
  std::mt19937 random(4);
  for (const Isa isa : port::available_isas()) {
    for (const float offset : {-1000.0f, -8.0f, -2.6f, -2.4f, -1.0f, -0.3f, 1.0f, 2.0f, 100.0f}) {
      for (const auto& [height, width] : {std::pair{64, 64}, std::pair{9, 37}}) {
        std::vector<float> map = blob(random, height, width);
        for (float& value : map) value = 0.1f * value + offset;
        check_map(map, height, width, Codec::kSoftargmax, isa, 40.0f);
      }
    }
    check_map(std::vector<float>(64 * 4, 3.2e38f), 4, 64, Codec::kSoftargmax, isa, 1e-37f);  // T v is small
  }
}

// How a map is swept hangs on those before it; what comes out does not.
TEST(joints_of_a_pose_are_independent) {
  constexpr int joints = 40, side = 32, size = side * side;
  const std::pair<int, float> hurt[] = {{7, kNan}, {8, kInf}, {12, 50.0f}, {15, kNan}, {18, -kInf}, {23, -kInf}};
  std::mt19937 random(6);
  std::vector<float> maps;
  for (int n = 0; n < joints; ++n) {
    for (const float value : blob(random, side, side)) maps.push_back(n % 20 < 9 ? value : 0.1f * value);
    if (n % 20 < 9) maps[static_cast<std::size_t>(n * size) + random() % size] = 0.95f;
  }
  for (const auto& [n, value] : hurt) maps[static_cast<std::size_t>(n * size) + random() % size] = value;
  const auto view = HeatmapView::dense(maps.data(), port::DType::kFloat32, 1, joints, side, side);
  for (const Isa isa : port::available_isas()) {
    const Decoded pose = decode(view, Codec::kSoftargmax, isa);
    for (int n = 0; n < joints; ++n) {
      const std::vector<float> map(maps.begin() + n * size, maps.begin() + (n + 1) * size);
      const Decoded alone = decode_one(map, side, side, Codec::kSoftargmax, isa);
      check_map(map, side, side, Codec::kSoftargmax, isa, 40.0f);
      for (std::size_t i = 0; i < 2; ++i) {
        const float a = pose.joints[static_cast<std::size_t>(2 * n) + i], b = alone.joints[i];
        CHECK_CASE(std::isnan(a) ? std::isnan(b) : std::fabs(a - b) < 1e-4f, "joint " + std::to_string(n));
      }
    }
  }
}

TEST(maps_that_hurt) {
  const std::vector<std::vector<float>> values = {
      {0.0f},        {-1.0f},       {1.0f},        {3e38f},      {-3e38f},      {1e-40f},
      {3.2e38f},     {kNan},        {kInf},        {-kNan},      {0.0f, kNan},  {0.5f, kInf},
      {-kInf, 0.5f}, {0.2f, -kInf}, {1e30f, 1.0f}, {5.0f, 2.0f}, {kInf, -kInf}, {2e38f, 2.9e38f}};
  std::mt19937 random(2);
  for (const Isa isa : port::available_isas()) {
    for (const Codec codec : kCodecs) {
      for (const auto& [height, width] : {std::pair{8, 8}, std::pair{5, 19}, std::pair{3, 64}}) {
        for (const auto& mix : values) {
          std::vector<float> map(static_cast<std::size_t>(height * width), mix[0]);
          for (std::size_t i = 1; i < mix.size(); ++i) map[random() % map.size()] = mix[i];
          check_map(map, height, width, codec, isa, 10.0f);
        }
      }
      const Decoded lowest = decode_one(std::vector<float>(64, -kInf), 8, 8, codec, isa);
      const float centre = codec == Codec::kArgmax ? 0.0f : 3.5f;  // nothing weighs anything: an empty map
      CHECK_CASE(lowest.joints[0] == centre && lowest.joints[1] == centre, label(isa, codec, 8, 8));
      CHECK_CASE(lowest.confidence[0] == 0.0f && lowest.mask[0] == 1, label(isa, codec, 8, 8));
    }
  }
}

TEST(ties_and_rounding) {
  for (const Isa isa : port::available_isas()) {
    std::vector<float> map(64 * 40, 0.25f);
    map[70] = map[71] = map[2000] = 0.75f;
    const Decoded first = decode_one(map, 64, 40, Codec::kArgmax, isa);
    CHECK(first.joints[0] == 30.0f && first.joints[1] == 1.0f);
    // Two equal pixels: the joint lies half way, and half rounds to the even one.
    std::vector<float> pair(8 * 8, 0.0f);
    pair[8 * 2 + 4] = 0.5f, pair[8 * 2 + 5] = 0.5f;
    const Decoded even = decode_one(pair, 8, 8, Codec::kSoftargmaxSum, isa);
    CHECK(even.joints[0] == 4.5f && even.joints[1] == 2.0f && even.confidence[0] == 0.5f);
    std::vector<float> odd(8 * 8, 0.0f);
    odd[8 * 2 + 3] = 0.75f, odd[8 * 2 + 4] = 0.75f, odd[8 * 2 + 5] = 0.0f;
    CHECK(decode_one(odd, 8, 8, Codec::kSoftargmaxSum, isa).joints[0] == 3.5f);
    CHECK(decode_one(odd, 8, 8, Codec::kSoftargmaxSum, isa).confidence[0] == 0.75f);
  }
}

TEST(half_to_float_is_exact) {
  for (unsigned bits = 0; bits < 0x10000u; ++bits) {
    const unsigned exponent = bits >> 10 & 31u, fraction = bits & 1023u;
    double want = exponent == 0    ? std::ldexp(fraction, -24)
                  : exponent == 31 ? (fraction ? NAN : HUGE_VAL)
                                   : std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25);
    if (bits & 0x8000u) want = -want;
    const float got = port::half_to_float(static_cast<std::uint16_t>(bits));
    CHECK(std::isnan(want) ? std::isnan(got) : static_cast<double>(got) == want);
  }
}

TEST(float16_maps_equal_their_float32_values) {
  std::mt19937 random(5);
  for (const auto& [height, width] : {std::pair{64, 64}, std::pair{13, 29}, std::pair{4, 7}}) {
    std::vector<std::uint16_t> half;
    std::vector<float> wide;
    for (int i = 0; i < height * width; ++i) {
      half.push_back(static_cast<std::uint16_t>(random() % 0x3C00u));  // 0..1
      wide.push_back(port::half_to_float(half.back()));
    }
    for (const Isa isa : port::available_isas()) {
      for (const Codec codec : kCodecs) {
        const Decoded a =
            decode(HeatmapView::dense(half.data(), port::DType::kFloat16, 1, 1, height, width), codec, isa);
        const Decoded b = decode_one(wide, height, width, codec, isa);
        CHECK_CASE(a.joints == b.joints && a.confidence == b.confidence, label(isa, codec, height, width));
      }
    }
  }
}

TEST(strides_batches_and_threads) {
  std::mt19937 random(9);
  const int batch = 37, joints = 5, height = 24, width = 20;
  std::vector<float> dense;
  for (int i = 0; i < batch * joints; ++i) {
    const std::vector<float> map = blob(random, height, width);
    dense.insert(dense.end(), map.begin(), map.end());
  }
  const HeatmapView view = HeatmapView::dense(dense.data(), port::DType::kFloat32, batch, joints, height, width);
  // The same values with rows padded, joints outside batches, and the batch backwards.
  const int pitch = width + 3;
  std::vector<float> loose(static_cast<std::size_t>(batch * joints * height * pitch), kNan);
  for (int b = 0; b < batch; ++b) {
    for (int n = 0; n < joints; ++n) {
      for (int y = 0; y < height; ++y) {
        std::memcpy(&loose[static_cast<std::size_t>(((n * batch + (batch - 1 - b)) * height + y) * pitch)],
                    &dense[static_cast<std::size_t>(((b * joints + n) * height + y) * width)], width * sizeof(float));
      }
    }
  }
  HeatmapView strided = view;
  strided.stride_h = pitch;
  strided.stride_b = -pitch * height;
  strided.stride_n = pitch * height * batch;
  strided.data = loose.data() + (batch - 1) * height * pitch;
  for (const Isa isa : port::available_isas()) {
    for (const Codec codec : kCodecs) {
      const Decoded one = decode(view, codec, isa), many = decode(view, codec, isa, 40.0f, 0.3f, 4);
      const Decoded other = decode(strided, codec, isa);
      CHECK_CASE(one.joints == many.joints && one.mask == many.mask, label(isa, codec, height, width));
      CHECK_CASE(one.joints == other.joints && one.confidence == other.confidence, label(isa, codec, height, width));
    }
  }
}

TEST(bad_arguments) {
  std::vector<float> map(64, 0.0f);
  float joints[2];
  const HeatmapView good = HeatmapView::dense(map.data(), port::DType::kFloat32, 1, 1, 8, 8);
  const auto call = [&joints](const HeatmapView& view, float temperature, float threshold, int threads) {
    port::decode(view, Codec::kSoftargmax, temperature, threshold, {joints, nullptr, nullptr}, threads);
    return 0;
  };
  CHECK(call(good, 40.0f, 0.3f, 1) == 0);
  const auto input = port::ErrorCode::kInput;
  for (const float bad : {0.0f, -1.0f, kNan, kInf}) CHECK_ERROR(input, "temperature", call(good, bad, 0.3f, 1));
  for (const float bad : {-0.1f, kNan, kInf}) CHECK_ERROR(input, "threshold", call(good, 40.0f, bad, 1));
  for (const int bad : {-1, 257}) CHECK_ERROR(input, "threads", call(good, 40.0f, 0.3f, bad));
  HeatmapView view = good;
  view.height = 0;
  CHECK_ERROR(input, "heatmaps", call(view, 40.0f, 0.3f, 1));
  view.height = 5000;
  CHECK_ERROR(input, "heatmaps", call(view, 40.0f, 0.3f, 1));
  view = good, view.batch = -1;
  CHECK_ERROR(input, "batch", call(view, 40.0f, 0.3f, 1));
  view = good, view.data = nullptr;
  CHECK_ERROR(input, "null", call(view, 40.0f, 0.3f, 1));
  view.batch = 0;
  CHECK(call(view, 40.0f, 0.3f, 1) == 0);
}

int main() { return port_test::run_tests(); }
