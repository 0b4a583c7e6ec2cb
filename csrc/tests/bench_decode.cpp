// SPDX-License-Identifier: Apache-2.0
// Microbenchmark of the decode alone, one thread, [1, 21, 64, 64] in warm caches; not a test: built with them as
// bench_decode. For blobs of several heights over a low ripple and each instruction set it prints the nanoseconds a map
// (median and least) of every codec; argmax is little more than reading the map once. Usage: bench_decode
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "decode.h"
#include "dispatch.h"

namespace {

constexpr int kMaps = 21, kSide = 64;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// `height` 0: a mixture, 30 % of the maps below 0.25 and the others up to 1, as port-bench draws them.
// They start on a cache line, as the arrays of NumPy and PyTorch do.
void make_maps(float height, float* maps) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  for (int map = 0; map < kMaps; ++map) {
    const float x0 = 6.0f + 52.0f * unit(random), y0 = 6.0f + 52.0f * unit(random);
    float peak = height;
    if (height == 0.0f) peak = unit(random) < 0.3f ? 0.06f + 0.18f * unit(random) : 0.44f + 0.54f * unit(random);
    for (int i = 0; i < kSide * kSide; ++i) {
      const float dx = static_cast<float>(i % kSide) - x0, dy = static_cast<float>(i / kSide) - y0;
      *maps++ = peak * std::exp(-0.125f * (dx * dx + dy * dy)) + 0.004f * (unit(random) - 0.5f);
    }
  }
}

}  // namespace

int main() {
  float joints[kMaps * 2], confidence[kMaps];
  alignas(64) static float maps[kMaps * kSide * kSide];
  for (const port::Isa isa : port::available_isas()) {
    for (const float height : {0.0f, 0.1f, 0.5f, 0.9f}) {
      make_maps(height, maps);
      const auto view = port::HeatmapView::dense(maps, port::DType::kFloat32, 1, kMaps, kSide, kSide);
      std::printf("%-7s peaks %s:", port::to_string(isa),
                  height == 0.0f ? "mixed" : std::to_string(height).substr(0, 3).c_str());
      for (const port::Codec codec : {port::Codec::kArgmax, port::Codec::kSoftargmaxSum, port::Codec::kSoftargmax}) {
        std::vector<double> times;
        for (const double end = seconds() + 0.15; seconds() < end;) {
          const double start = seconds();
          port::decode(view, codec, 40.0f, 0.3f, {joints, confidence, nullptr}, 1, isa);
          times.push_back((seconds() - start) / kMaps);
        }
        std::sort(times.begin(), times.end());
        std::printf("  %s %4.0f (%4.0f)", port::to_string(codec), times[times.size() / 2] * 1e9, times[0] * 1e9);
      }
      std::printf("  ns a map\n");
    }
  }
  return 0;
}
