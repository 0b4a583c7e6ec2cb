// SPDX-License-Identifier: Apache-2.0
// The codecs that start from the largest pixel, and SimCC, on every instruction set: peaks whose place is known,
// borders, small maps and maps that hurt. tests/test_decode_codecs.py holds them against MMPose's recorded answers.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "testing.h"

namespace {

using port::HeatmapView;
using port::PeakCodec;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr PeakCodec kCodecs[] = {PeakCodec::kMsra, PeakCodec::kDark, PeakCodec::kUdp};

struct Decoded {
  float x, y, confidence;
  std::uint8_t mask;
};

std::vector<float> blob(int height, int width, double x, double y, double peak) {
  std::vector<float> map;
  for (int i = 0; i < height * width; ++i) {
    const double dx = i % width - x, dy = i / width - y;
    map.push_back(static_cast<float>(peak * std::exp(-(dx * dx + dy * dy) / 8.0)));
  }
  return map;
}

Decoded decode(const std::vector<float>& map, int height, int width, PeakCodec codec, port::Isa isa, int blur = 11) {
  Decoded d{-7.0f, -7.0f, -7.0f, 7};
  float joint[2];
  const HeatmapView view = HeatmapView::dense(map.data(), port::DType::kFloat32, 1, 1, height, width);
  port::decode_peaks(view, codec, blur, 0.3f, {joint, &d.confidence, &d.mask}, 1, isa);
  d.x = joint[0];
  d.y = joint[1];
  return d;
}

bool missing(const Decoded& d) { return std::isnan(d.x) && std::isnan(d.y) && d.confidence == 0.0f && d.mask == 1; }

template <typename Call>
bool refused(Call call) {
  try {
    call();
  } catch (const port::Error& error) {
    return error.code() == port::ErrorCode::kInput;
  }
  return false;
}

}  // namespace

TEST(a_gaussian_peak_is_found_between_pixels) {
  for (const port::Isa isa : port::available_isas()) {
    for (double place = 20.0; place < 21.0; place += 0.09) {
      const std::vector<float> map = blob(64, 48, place, 52.6 - place, 0.8);
      for (const PeakCodec codec : kCodecs) {
        const Decoded d = decode(map, 64, 48, codec, isa);
        const double bound = codec == PeakCodec::kMsra ? 0.26 : 1e-3;
        CHECK(std::fabs(d.x - place) < bound);
        CHECK(std::fabs(d.y - (52.6 - place)) < bound);
        CHECK(d.mask == 0);
      }
    }
  }
}

// Where udp's clip at 1e-3 bites, the factor that restores the blurred map's maximum matters and is looked for.
TEST(low_peaks_are_rescaled_by_the_whole_map) {
  const port::Isa isa = port::available_isas().back();
  std::vector<float> low = blob(64, 48, 20.3, 30.7, 2e-3);
  const Decoded alone = decode(low, 64, 48, PeakCodec::kUdp, isa);
  CHECK(std::fabs(alone.x - 20.3f) < 0.02f);
  std::vector<float> tenth = blob(64, 48, 20.3, 30.7, 2e-4);
  const Decoded clipped = decode(tenth, 64, 48, PeakCodec::kUdp, isa);
  CHECK(clipped.x == 20.0f && clipped.y == 31.0f);  // all of it is below 1e-3: flat, no step
}

TEST(peaks_at_the_border_stay_on_the_map) {
  for (const port::Isa isa : port::available_isas()) {
    for (const PeakCodec codec : kCodecs) {
      for (const int corner : {0, 9, 90, 99}) {
        std::vector<float> map(100, 0.0f);
        map[static_cast<std::size_t>(corner)] = 0.5f;
        const Decoded d = decode(map, 10, 10, codec, isa);
        const auto x = static_cast<float>(corner % 10), y = static_cast<float>(corner / 10);
        CHECK(std::fabs(d.x - x) < 1.5f);
        CHECK(std::fabs(d.y - y) < 1.5f);
        if (codec != PeakCodec::kUdp) CHECK(d.x == x && d.y == y);
      }
    }
  }
}

TEST(small_flat_and_broken_maps) {
  for (const port::Isa isa : port::available_isas()) {
    for (const PeakCodec codec : kCodecs) {
      for (const int height : {1, 2, 5}) {
        for (const int width : {1, 3, 7}) {
          const auto size = static_cast<std::size_t>(height * width);
          const Decoded flat = decode(std::vector<float>(size, 0.5f), height, width, codec, isa, 63);
          CHECK(flat.confidence == 0.5f && flat.mask == 0);
          CHECK(std::isfinite(flat.x) && std::isfinite(flat.y));
          for (const float bad : {0.0f, -1.0f, kNan, std::numeric_limits<float>::infinity()}) {
            CHECK(missing(decode(std::vector<float>(size, bad), height, width, codec, isa)));
          }
        }
      }
    }
  }
}

TEST(unusable_blurs_are_refused) {
  const std::vector<float> map(64, 0.5f);
  for (const int blur : {-1, 0, 7, 10, 65}) {
    CHECK(refused([&] { decode(map, 8, 8, PeakCodec::kDark, port::Isa::kGeneric, blur); }));
  }
}

TEST(simcc_takes_the_largest_bin_of_each_axis) {
  constexpr int kJoints = 70, kX = 13, kY = 21;
  std::vector<float> x(2 * kJoints * kX, 0.1f), y(2 * kJoints * kY, 0.2f), joints(4 * kJoints), confidence(2 * kJoints);
  std::vector<std::uint8_t> mask(2 * kJoints);
  for (int i = 0; i < 2 * kJoints; ++i) {
    x[static_cast<std::size_t>(i * kX + i % kX)] = 0.9f;
    y[static_cast<std::size_t>(i * kY + i % kY)] = 0.5f;
  }
  x[static_cast<std::size_t>(3 * kX)] = kNan;
  const auto view = [&](const std::vector<float>& v, int bins) {
    return HeatmapView::dense(v.data(), port::DType::kFloat32, 2, kJoints, 1, bins);
  };
  const port::Output out{joints.data(), confidence.data(), mask.data()};
  for (const port::Isa isa : port::available_isas()) {
    port::decode_simcc(view(x, kX), view(y, kY), 2.0f, port::SimccScore::kMin, 0.6f, out, 2, isa);
    for (int i = 0; i < 2 * kJoints; ++i) {
      const auto row = static_cast<std::size_t>(i);
      if (i == 3) {
        CHECK(std::isnan(joints[2 * row]) && confidence[row] == 0.0f && mask[row] == 1);
        continue;
      }
      CHECK(joints[2 * row] == static_cast<float>(i % kX) / 2 && joints[2 * row + 1] == static_cast<float>(i % kY) / 2);
      CHECK(confidence[row] == 0.5f && mask[row] == 1);
    }
    port::decode_simcc(view(x, kX), view(y, kY), 2.0f, port::SimccScore::kMean, 0.6f, {joints.data(), nullptr, nullptr},
                       1, isa);
    port::decode_simcc(view(x, kX), view(y, kY), 2.0f, port::SimccScore::kMean, 0.6f, out, 1, isa);
    CHECK(std::fabs(confidence[0] - 0.7f) < 1e-6f && mask[0] == 0);
  }
  CHECK(refused([&] {
    port::decode_simcc(view(x, kX), HeatmapView::dense(y.data(), port::DType::kFloat32, 2, kJoints, 3, 7), 2.0f,
                       port::SimccScore::kMin, 0.3f, out);
  }));
  CHECK(refused([&] { port::decode_simcc(view(x, kX), view(y, kY), 0.0f, port::SimccScore::kMin, 0.3f, out); }));
}

int main() { return port_test::run_tests(); }
