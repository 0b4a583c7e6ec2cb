// SPDX-License-Identifier: Apache-2.0
// The decode kernel on the emulated GPU against port::decode: codecs, types, sizes, strides, maps that hurt, and bits
// that do not depend on how a map is spread over warps.
#include <device/intrinsics.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "arguments.h"
#include "decode_cases.h"
#include "kernels/decode_kernel.h"
#include "testing.h"

namespace {

using port::Codec;
using namespace port_test;

constexpr Codec kCodecs[] = {Codec::kSoftargmax, Codec::kSoftargmaxSum, Codec::kArgmax};

Decoded emulate(const HeatmapView& view, Codec codec, float temperature, bool block_per_map, unsigned seed) {
  using namespace port::kernels;
  const auto count = view.batch * view.joints;
  Decoded decoded(static_cast<std::size_t>(count));
  DecodeParams p{port::maps_of(view, codec, temperature), port::results_of(decoded.output()), count, view.joints, 0.3f};
  port::emulated::Launch launch;
  launch.blocks = static_cast<int>(block_per_map ? count : (count + kQuarters - 1) / kQuarters);
  launch.threads = kDecodeThreads;
  launch.shared_bytes = sizeof(Part) * kQuarters * (block_per_map ? 1 : kQuarters);
  launch.seed = seed;
  port::emulated::launch(launch, [&] { block_per_map ? decode_kernel<true>(p) : decode_kernel<false>(p); });
  return decoded;
}

void compare(const Batch& batch, Codec codec, float temperature, unsigned seed) {
  const std::string name = std::string(port::to_string(codec)) + " " + std::to_string(batch.view.height) + "x" +
                           std::to_string(batch.view.width) + " at " + std::to_string(temperature);
  Decoded want(static_cast<std::size_t>(batch.view.batch * batch.view.joints));
  port::decode(batch.plain, codec, temperature, 0.3f, want.output(), 1, port::Isa::kGeneric);
  const Decoded got = emulate(batch.view, codec, temperature, true, seed);
  const Decoded again = emulate(batch.view, codec, temperature, false, seed + 1);
  CHECK_CASE(same_bits(got.joints, again.joints) && same_bits(got.confidence, again.confidence), name);
  CHECK_CASE(got.mask == again.mask, name);
  const double allowed = 0x1p-16 + 4e-6 * std::max(batch.view.height, batch.view.width);  // twice the reference's own
  for (std::size_t i = 0; i < want.mask.size(); ++i) {
    const float x = got.joints[2 * i], y = got.joints[2 * i + 1];
    if (std::isnan(want.joints[2 * i])) {
      CHECK_CASE(std::isnan(x) && std::isnan(y) && got.confidence[i] == 0.0f && got.mask[i] == 1, name);
      continue;
    }
    CHECK_CASE(std::fabs(static_cast<double>(x) - static_cast<double>(want.joints[2 * i])) < allowed, name);
    CHECK_CASE(std::fabs(static_cast<double>(y) - static_cast<double>(want.joints[2 * i + 1])) < allowed, name);
    const auto at =
        (static_cast<std::ptrdiff_t>(i) * batch.view.height + static_cast<int>(std::nearbyint(y))) * batch.view.width +
        static_cast<int>(std::nearbyint(x));
    CHECK_CASE(got.confidence[i] == std::clamp(batch.floats.data()[at], 0.0f, 1.0f), name);
    CHECK_CASE(got.mask[i] == !(got.confidence[i] >= 0.3f), name);
  }
}

}  // namespace

TEST(sizes_types_and_codecs) {
  std::mt19937 random(1);
  const std::pair<int, int> sizes[] = {{64, 64}, {64, 48}, {46, 46}, {17, 33}, {1, 1},  {1, 64}, {64, 1},
                                       {3, 5},   {9, 65},  {128, 4}, {4, 128}, {5, 24}, {31, 8}, {96, 72}};
  unsigned seed = 0;
  for (const auto& [height, width] : sizes) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBfloat16}) {
      const Batch batch = batch_of(blobs(random, 3, height, width), dtype, 1, 3, height, width);
      for (const Codec codec : kCodecs) {
        for (const float temperature : {1.0f, 40.0f, 1000.0f}) {
          compare(batch, codec, temperature, seed++ % 5);
          if (codec != Codec::kSoftargmax) break;
        }
      }
    }
  }
}

TEST(maps_that_hurt) {
  const std::vector<std::vector<float>> special = {{kNan},
                                                   {kInf},
                                                   {-kInf},
                                                   {0.0f},
                                                   {-1.0f},
                                                   {1e30f},
                                                   {3e38f},
                                                   {-3e38f},
                                                   {1e-40f},
                                                   {0.0f, kNan},
                                                   {0.5f, kInf},
                                                   {-kInf, 0.7f},
                                                   {1e38f, 2e38f, -3e38f},
                                                   {3.2e38f, 0.1f},
                                                   {-3.3e38f, -kInf},
                                                   {0.9f, 0.9f, 0.2f},
                                                   {1e21f, 0.1f}};
  std::vector<float> values;
  for (const auto& pattern : special) {
    for (std::size_t i = 0; i < 24 * 16; ++i) values.push_back(pattern[i * 7 % pattern.size()]);
  }
  const Batch batch = batch_of(values, DType::kFloat32, 1, static_cast<int>(special.size()), 24, 16);
  for (const Codec codec : kCodecs) {
    for (unsigned seed = 0; seed < 3; ++seed) compare(batch, codec, 40.0f, seed);
    compare(batch, codec, 1e35f, 1);
  }
  std::vector<float> lone(1024, 0.0f);  // one bad pixel in every quarter
  for (const std::size_t at : {5u, 300u, 600u, 1023u}) {
    lone.assign(1024, 0.1f);
    lone[at] = kNan;
    for (const Codec codec : kCodecs) compare(batch_of(lone, DType::kFloat32, 1, 1, 32, 32), codec, 40.0f, 2);
  }
}

TEST(strides) {
  std::mt19937 random(2);
  const std::vector<float> big = blobs(random, 6, 40, 40);
  for (const int shift : {0, 1, 4}) {
    const HeatmapView view = flipped_crop(big, shift);
    for (const Codec codec : kCodecs) {
      Decoded want(6);
      port::decode(view, codec, 40.0f, 0.3f, want.output(), 1, port::Isa::kGeneric);
      const Decoded got = emulate(view, codec, 40.0f, true, 1), again = emulate(view, codec, 40.0f, false, 2);
      CHECK(same_bits(got.joints, again.joints));
      for (std::size_t i = 0; i < 12; ++i) CHECK(std::fabs(got.joints[i] - want.joints[i]) < 2e-4f);
    }
  }
}

// Without its one barrier, the thread that merges reads what nobody has written yet.
TEST(a_missing_barrier_is_caught) {
  using namespace port::kernels;
  std::mt19937 random(3);
  const Batch batch = batch_of(blobs(random, 1, 32, 32), DType::kFloat32, 1, 1, 32, 32);
  const Decoded right = emulate(batch.view, Codec::kSoftargmax, 40.0f, true, 0);
  int wrong = 0;
  for (unsigned seed = 0; seed < 6; ++seed) {
    Decoded decoded(1);
    DecodeParams p{port::maps_of(batch.view, Codec::kSoftargmax, 40.0f), port::results_of(decoded.output()), 1, 1,
                   0.3f};
    port::emulated::Launch launch;
    launch.threads = kDecodeThreads;
    launch.shared_bytes = sizeof(Part) * kQuarters;
    launch.seed = seed;
    launch.skip_barrier = 0;
    port::emulated::launch(launch, [&] { decode_kernel<true>(p); });
    wrong += !same_bits(decoded.joints, right.joints);
  }
  CHECK(wrong > 0);
}

int main() { return port_test::run_tests(); }
