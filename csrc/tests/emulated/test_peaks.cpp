// SPDX-License-Identifier: Apache-2.0
// The kernels of msra, dark, udp and SimCC on the emulated GPU: against the processor's decoder, bit for bit where it
// rounds after every operation (x86-64), and against an oracle in double; types, sizes, strides, maps that hurt, either
// way to spread maps over warps, and missing barriers.
#include <device/intrinsics.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "arguments.h"
#include "decode_cases.h"
#include "kernels/peak_kernel.h"
#include "peak_oracle.h"
#include "testing.h"

namespace {

using port::PeakCodec;

using namespace port_test;

constexpr PeakCodec kCodecs[] = {PeakCodec::kMsra, PeakCodec::kDark, PeakCodec::kUdp};
constexpr float kThreshold = 0.3f;

#if defined(__x86_64__)
constexpr bool kExact = true;
#else
constexpr bool kExact = false;
#endif

Decoded emulate(const HeatmapView& view, PeakCodec codec, int blur, bool together, unsigned seed,
                int skip_barrier = -1) {
  using namespace port::kernels;
  Decoded decoded(static_cast<std::size_t>(view.batch * view.joints));
  const PeakParams p = port::peak_params(view, codec, blur, kThreshold, decoded.output(), together);
  port::emulated::Launch launch;
  launch.blocks = static_cast<int>(together ? p.count : (p.count + kQuarters - 1) / kQuarters);
  launch.threads = kDecodeThreads;
  launch.shared_bytes = peak_shared_bytes(p.rule, blur);
  launch.seed = seed;
  launch.skip_barrier = skip_barrier;
  launch.tolerant = skip_barrier >= 0;  // warps that disagree on the second barrier wait for ever
  if (port::emulated::launch(launch, [&] { peak_kernel(p); }).stopped) decoded.mask.clear();
  return decoded;
}

Decoded on_processor(const HeatmapView& view, PeakCodec codec, int blur) {
  Decoded decoded(static_cast<std::size_t>(view.batch * view.joints));
  port::decode_peaks(view, codec, blur, kThreshold, decoded.output(), 1, port::Isa::kGeneric);
  return decoded;
}

bool same(const Decoded& a, const Decoded& b) {
  return same_bits(a.joints, b.joints) && same_bits(a.confidence, b.confidence) && a.mask == b.mask;
}

struct Tally {
  int compared = 0, loose = 0;  // with the oracle; of those, where it says that rounding decides
};

void compare(const Batch& batch, PeakCodec codec, int blur, unsigned seed, Tally* tally) {
  const int height = batch.view.height, width = batch.view.width;
  const std::string name = std::string(port::to_string(codec)) + " " + std::to_string(height) + "x" +
                           std::to_string(width) + " blur " + std::to_string(blur);
  const Decoded want = on_processor(batch.plain, codec, blur);
  const Decoded got = emulate(batch.view, codec, blur, true, seed);
  CHECK_CASE(same(got, emulate(batch.view, codec, blur, false, seed + 1)), name);
  CHECK_CASE(same_bits(got.confidence, want.confidence) && got.mask == want.mask, name);
  if (kExact) CHECK_CASE(same_bits(got.joints, want.joints), name);
  for (std::size_t i = 0; i < want.mask.size(); ++i) {
    const auto first = batch.floats.begin() + static_cast<std::ptrdiff_t>(i) * height * width;
    const PeakTruth truth = PeakOracle{{first, first + height * width}, height, width, codec, blur}();
    const double x = static_cast<double>(got.joints[2 * i]), y = static_cast<double>(got.joints[2 * i + 1]);
    const float confidence = got.confidence[i];
    if (truth.missing) {
      CHECK_CASE(std::isnan(x) && std::isnan(y) && confidence == 0.0f && got.mask[i] == 1, name);
      continue;
    }
    CHECK_CASE(std::isfinite(x) && std::isfinite(y), name);
    CHECK_CASE(confidence == static_cast<float>(truth.confidence) && got.mask[i] == !(confidence >= kThreshold), name);
    ++tally->compared;
    tally->loose += !truth.conditioned;
    if (!truth.conditioned) continue;
    const double allowed = truth.allowed + 1e-6 + 1.2e-7 * std::max(height, width);
    CHECK_CASE(
        std::fabs(x - truth.x) <= allowed && std::fabs(y - truth.y) <= allowed,
        name + ": " + std::to_string(std::hypot(x - truth.x, y - truth.y)) + " px of " + std::to_string(allowed));
  }
}

void put(std::vector<float>& map, int width, int x, int y, float value) {
  map[static_cast<std::size_t>(y * width + x)] = value;
}

// A faint spike, for whose step udp must know the blurred map's maximum, and a broad hump elsewhere that has it.
std::vector<float> spike_and_hump() {
  std::vector<float> map(64 * 40, 0.0f);
  for (int y = 40; y < 60; ++y) {
    for (int x = 10; x < 30; ++x) put(map, 40, x, y, 0.0027f + 0.00001f * static_cast<float>(x));
  }
  put(map, 40, 12, 9, 0.006f);
  put(map, 40, 13, 9, 0.0045f);
  put(map, 40, 12, 10, 0.0033f);
  return map;
}

}  // namespace

TEST(sizes_types_and_blurs) {
  std::mt19937 random(1);
  const std::pair<int, int> sizes[] = {{64, 48}, {64, 64}, {46, 46}, {17, 33}, {1, 1}, {1, 64}, {64, 1},
                                       {2, 2},   {3, 5},   {5, 5},   {9, 65},  {4, 9}, {5, 24}, {31, 8}};
  const int blurs[] = {11, 9, 17, 63};
  Tally tally;
  unsigned seed = 0;
  for (const auto& [height, width] : sizes) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBfloat16}) {
      const Batch batch = batch_of(blobs(random, 3, height, width), dtype, 1, 3, height, width);
      for (const PeakCodec codec : kCodecs) compare(batch, codec, blurs[seed % 4], seed % 5, &tally), ++seed;
    }
  }
  CHECK(tally.compared > 300 && tally.loose * 8 < tally.compared);
  if (std::getenv("PORT_TEST_VERBOSE")) std::printf("%d compared, %d loose\n", tally.compared, tally.loose);
}

// Every number of maps in the last block, and poses of several joints.
TEST(batches_past_every_boundary) {
  std::mt19937 random(2);
  Tally tally;
  for (const int poses : {1, 2, 3, 4, 5, 9}) {
    const Batch batch = batch_of(blobs(random, poses * 3, 20, 24), DType::kFloat16, poses, 3, 20, 24);
    for (const PeakCodec codec : kCodecs) compare(batch, codec, 11, static_cast<unsigned>(poses), &tally);
  }
  HeatmapView none = HeatmapView::dense(nullptr, DType::kFloat32, 0, 3, 8, 8);
  CHECK(port::peak_params(none, PeakCodec::kDark, 11, 0.3f, {}, true).count == 0);
}

TEST(peaks_at_every_border) {
  Tally tally;
  std::vector<float> values;
  int maps = 0;
  for (const int y : {0, 1, 2, 3, 7, 15, 16, 17, 18}) {
    for (const int x : {0, 1, 2, 3, 9, 20, 21, 22, 23}) {
      std::vector<float> map(19 * 24);
      for (int i = 0; i < 19 * 24; ++i) {
        const double dx = i % 24 - x - 0.3, dy = i / 24 - y + 0.2;
        map[static_cast<std::size_t>(i)] = static_cast<float>(0.7 * std::exp(-(dx * dx + dy * dy) / 8.0));
      }
      values.insert(values.end(), map.begin(), map.end());
      ++maps;
    }
  }
  const Batch batch = batch_of(values, DType::kFloat32, maps, 1, 19, 24);
  for (const PeakCodec codec : kCodecs) compare(batch, codec, 11, 1, &tally);
  CHECK(tally.loose == 0);
}

TEST(maps_that_hurt) {
  std::mt19937 random(3);
  const std::vector<std::vector<float>> special = {{kNan},          {kInf},
                                                   {-kInf},         {0.0f},
                                                   {-1.0f},         {1e30f},
                                                   {3e38f},         {-3e38f},
                                                   {1e-40f},        {0.0f, kNan},
                                                   {0.5f, kInf},    {-kInf, 0.7f},
                                                   {3.2e38f, .1f},  {0.9f, 0.9f, 0.2f},
                                                   {1e21f, 0.1f},   {-0.0f, 0.0f},
                                                   {60.0f, 1.0f},   {2e-3f, 1e-3f, 1e-4f},
                                                   {0.02f, -0.03f}, {-kInf, -kInf, -kInf, 0.4f, 0.1f}};
  Tally tally;
  for (const auto& [height, width] : {std::pair{24, 16}, std::pair{7, 5}}) {
    std::vector<float> values;
    for (const auto& pattern : special) {
      for (int i = 0; i < height * width; ++i) {
        values.push_back(pattern[static_cast<std::size_t>(i) * 7 % pattern.size()]);
      }
    }
    const Batch batch = batch_of(values, DType::kFloat32, 1, static_cast<int>(special.size()), height, width);
    for (const PeakCodec codec : kCodecs) {
      for (unsigned seed = 0; seed < 3; ++seed) compare(batch, codec, seed == 1 ? 63 : 11, seed, &tally);
    }
  }
  std::vector<float> edge = blobs(random, 1, 40, 40);  // -inf where the blur of 11 just does not reach
  put(edge, 40, 20, 19, 1.5f);
  for (const int x : {12, 28}) {
    for (int y = 0; y < 40; ++y) put(edge, 40, x, y, -kInf);
  }
  Tally beside;
  for (const PeakCodec codec : kCodecs) compare(batch_of(edge, DType::kFloat32, 1, 1, 40, 40), codec, 11, 4, &beside);
  CHECK(beside.loose == 0);
  std::vector<float> lone;  // one bad pixel in every quarter
  for (const std::size_t at : {5u, 300u, 600u, 1023u}) {
    lone.assign(1024, 0.1f);
    lone[at] = kNan;
    for (const PeakCodec codec : kCodecs) compare(batch_of(lone, DType::kFloat32, 1, 1, 32, 32), codec, 11, 2, &tally);
  }
}

// Where nothing curves there is no step: the sums must cancel to nothing, not nearly. Ties go to the first pixel.
TEST(flat_maps_ridges_and_ties) {
  const auto check = [](const std::vector<float>& map, int height, int width, int x, int y, bool udp_too) {
    for (const PeakCodec codec : {PeakCodec::kDark, PeakCodec::kUdp}) {
      if (codec == PeakCodec::kUdp && !udp_too) continue;
      for (const bool together : {true, false}) {
        const auto view = HeatmapView::dense(map.data(), DType::kFloat32, 1, 1, height, width);
        const Decoded got = emulate(view, codec, 9, together, 3);
        CHECK(got.joints[0] == static_cast<float>(x) && got.joints[1] == static_cast<float>(y));
      }
    }
  };
  std::vector<float> flat(40 * 40, 0.5f);
  check(flat, 40, 40, 0, 0, false);
  put(flat, 40, 20, 17, 0.5f + 0x1p-24f);  // the largest by less than a sum can tell
  check(flat, 40, 40, 20, 17, false);
  std::vector<float> ridge(40 * 40);
  for (int i = 0; i < 40 * 40; ++i) ridge[static_cast<std::size_t>(i)] = i % 40 == 13 ? 0.9f : 0.25f;
  put(ridge, 40, 13, 20, 0.9f + 0x1p-24f);
  check(ridge, 40, 40, 13, 20, false);
  std::vector<float> twice(33 * 33, 0.0f);
  for (const int at : {30, 18}) put(twice, 33, at, 48 - at, 0.8f);
  check(twice, 33, 33, 30, 18, true);
}

// Faint maps, whose step needs the largest value of the whole blurred map: in strips of columns and quarters of rows.
TEST(clipped_steps_are_rescaled_by_the_whole_map) {
  std::mt19937 random(4);
  Tally tally;
  for (const auto& [height, width] : {std::pair{64, 48}, std::pair{10, 70}, std::pair{33, 32}, std::pair{3, 3}}) {
    for (const float size : {3e-3f, 1e-2f, 80.0f}) {
      std::vector<float> values = blobs(random, 3, height, width);
      for (float& v : values) v *= size;
      const Batch batch = batch_of(values, DType::kFloat32, 1, 3, height, width);
      compare(batch, PeakCodec::kUdp, size > 1.0f ? 17 : 11, 5, &tally);
      for (float& v : values) v -= 0.3f * size;  // below 0 around the blob, where dark clips
      compare(batch_of(values, DType::kFloat32, 1, 3, height, width), PeakCodec::kDark, 11, 6, &tally);
    }
  }
  const Batch batch = batch_of(spike_and_hump(), DType::kFloat32, 1, 1, 64, 40);
  Tally alone;
  compare(batch, PeakCodec::kUdp, 11, 7, &alone);
  CHECK(alone.compared == 1 && alone.loose == 0);
  CHECK(tally.compared > 50 && tally.loose * 2 < tally.compared);
  if (std::getenv("PORT_TEST_VERBOSE")) std::printf("%d compared, %d loose\n", tally.compared, tally.loose);
}

TEST(strides) {
  std::mt19937 random(5);
  const std::vector<float> big = blobs(random, 6, 40, 40);
  for (const int shift : {0, 1, 4}) {
    const HeatmapView view = flipped_crop(big, shift);
    for (const PeakCodec codec : kCodecs) {
      const Decoded want = on_processor(view, codec, 13);
      for (const bool together : {true, false}) {
        const Decoded got = emulate(view, codec, 13, together, 1);
        CHECK(kExact ? same(got, want) : same_bits(got.confidence, want.confidence));
      }
    }
  }
}

// Only what is wanted is written.
TEST(outputs_that_are_not_wanted) {
  std::mt19937 random(6);
  const Batch batch = batch_of(blobs(random, 2, 16, 16), DType::kFloat32, 2, 1, 16, 16);
  using namespace port::kernels;
  Decoded decoded(2);
  const PeakParams p = port::peak_params(batch.view, PeakCodec::kDark, 11, kThreshold, {decoded.joints.data()}, false);
  port::emulated::Launch launch;
  launch.threads = kDecodeThreads;
  launch.shared_bytes = peak_shared_bytes(p.rule, 11);
  port::emulated::launch(launch, [&] { peak_kernel(p); });
  CHECK(same_bits(decoded.joints, emulate(batch.view, PeakCodec::kDark, 11, true, 0).joints));
}

// Without the first barrier a warp reads parts that nobody has written; without the second, maxima.
TEST(missing_barriers_are_caught) {
  const std::vector<float> map = spike_and_hump();
  const auto view = HeatmapView::dense(map.data(), DType::kFloat32, 1, 1, 64, 40);
  const Decoded right = emulate(view, PeakCodec::kUdp, 11, true, 0);
  for (const int barrier : {0, 1}) {
    int wrong = 0;
    for (unsigned seed = 0; seed < 6; ++seed) {
      wrong += !same(emulate(view, PeakCodec::kUdp, 11, true, seed, barrier), right);
    }
    CHECK_CASE(wrong > 0, std::to_string(barrier));
  }
}

int main() { return port_test::run_tests(); }
