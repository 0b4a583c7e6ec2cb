// SPDX-License-Identifier: Apache-2.0
// The SimCC kernel on the emulated GPU against the processor's decoder, bit for bit, and against a search by the
// standard library: types (of each axis its own), numbers of bins, strides, vectors that hurt, and a missing barrier.
#include <device/intrinsics.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "arguments.h"
#include "decode_cases.h"
#include "kernels/simcc_kernel.h"
#include "testing.h"

namespace {

using port::SimccScore;
using namespace port_test;

Decoded emulate(const HeatmapView& x, const HeatmapView& y, float ratio, SimccScore score, bool together, unsigned seed,
                int skip_barrier = -1) {
  using namespace port::kernels;
  Decoded decoded(static_cast<std::size_t>(x.batch * x.joints));
  const SimccParams p = port::simcc_params(x, y, ratio, score, 0.3f, decoded.output(), together);
  port::emulated::Launch launch;
  launch.blocks = static_cast<int>(together ? p.count : (p.count + kQuarters - 1) / kQuarters);
  launch.threads = kDecodeThreads;
  launch.shared_bytes = kSimccSharedBytes;
  launch.seed = seed;
  launch.skip_barrier = skip_barrier;
  port::emulated::launch(launch, [&] { simcc_kernel(p); });
  return decoded;
}

std::vector<float> scores(std::mt19937& random, int count) {
  std::uniform_real_distribution<float> unit(-0.2f, 1.1f);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& v : values) v = std::round(unit(random) * 64.0f) / 64.0f;  // many ties
  return values;
}

bool same(const Decoded& a, const Decoded& b) {
  return same_bits(a.joints, b.joints) && same_bits(a.confidence, b.confidence) && a.mask == b.mask;
}

void compare(const Batch& x, const Batch& y, float ratio, SimccScore score, unsigned seed) {
  const std::string name = std::to_string(x.view.width) + " and " + std::to_string(y.view.width) + " bins";
  const auto count = static_cast<std::size_t>(x.view.batch * x.view.joints);
  Decoded want(count);
  port::decode_simcc(x.plain, y.plain, ratio, score, 0.3f, want.output(), 1, port::Isa::kGeneric);
  const Decoded got = emulate(x.view, y.view, ratio, score, true, seed);
  CHECK_CASE(same(got, want), name);
  CHECK_CASE(same(emulate(x.view, y.view, ratio, score, false, seed + 1), want), name);
  for (std::size_t i = 0; i < count; ++i) {
    double place[2], most[2];
    bool usable = true;
    for (const Batch* axis : {&x, &y}) {
      const int bins = axis->view.width;
      const auto first = axis->floats.begin() + static_cast<std::ptrdiff_t>(i) * bins, last = first + bins;
      usable = usable && std::all_of(first, last, [](float v) { return v <= 3e38f; });
      const auto top = std::max_element(first, last);
      place[axis == &y] = static_cast<double>(top - first);
      most[axis == &y] = static_cast<double>(*top);
    }
    const double value = score == SimccScore::kMin ? std::min(most[0], most[1]) : (most[0] + most[1]) / 2.0;
    if (!usable || !(value > 0.0)) {
      CHECK_CASE(std::isnan(got.joints[2 * i]) && got.confidence[i] == 0.0f && got.mask[i] == 1, name);
      continue;
    }
    CHECK_CASE(got.joints[2 * i] == static_cast<float>(place[0] / static_cast<double>(ratio)), name);
    CHECK_CASE(got.joints[2 * i + 1] == static_cast<float>(place[1] / static_cast<double>(ratio)), name);
    CHECK_CASE(got.confidence[i] == static_cast<float>(std::min(value, 1.0)), name);
    CHECK_CASE(got.mask[i] == !(got.confidence[i] >= 0.3f), name);
  }
}

}  // namespace

TEST(bins_types_and_batches) {
  std::mt19937 random(1);
  unsigned seed = 0;
  const DType types[] = {DType::kFloat32, DType::kFloat16, DType::kBfloat16};
  for (const auto& [bins_x, bins_y] : {std::pair{384, 512}, std::pair{1, 1}, std::pair{31, 33}, std::pair{288, 7},
                                       std::pair{5, 1024}, std::pair{4096, 96}}) {
    for (int i = 0; i < 3; ++i, ++seed) {
      const int poses = 1 + static_cast<int>(seed % 3), joints = bins_x > 1000 ? 1 : 3, count = poses * joints;
      const Batch x = batch_of(scores(random, count * bins_x), types[seed % 3], poses, joints, 1, bins_x);
      const Batch y = batch_of(scores(random, count * bins_y), types[(seed / 3 + seed) % 3], poses, joints, 1, bins_y);
      compare(x, y, 2.0f, SimccScore::kMin, seed % 5);
      compare(x, y, 3.0f, SimccScore::kMean, seed % 5);
    }
  }
}

TEST(vectors_that_hurt) {
  const std::vector<std::vector<float>> special = {{kNan},
                                                   {kInf},
                                                   {-kInf},
                                                   {0.0f},
                                                   {-1.0f},
                                                   {3e38f},
                                                   {-0.0f, 0.0f},
                                                   {0.5f, kNan},
                                                   {0.4f, kInf},
                                                   {-kInf, 0.7f},
                                                   {3.2e38f, 0.1f},
                                                   {1e-40f},
                                                   {0.9f, 0.9f, 0.2f},
                                                   {2.0f}};
  const auto n = special.size();
  std::vector<float> x, y;
  for (std::size_t i = 0; i < n * n; ++i) {
    for (std::size_t k = 0; k < 40; ++k) x.push_back(special[i % n][k * 7 % special[i % n].size()]);
    for (std::size_t k = 0; k < 24; ++k) y.push_back(special[i / n][k * 7 % special[i / n].size()]);
  }
  const int joints = static_cast<int>(n);
  for (const DType type : {DType::kFloat32, DType::kFloat16}) {
    const Batch along_x = batch_of(x, type, joints, joints, 1, 40), along_y = batch_of(y, type, joints, joints, 1, 24);
    for (const float ratio : {2.0f, 1e-38f}) {
      compare(along_x, along_y, ratio, SimccScore::kMin, 1);
      compare(along_x, along_y, ratio, SimccScore::kMean, 2);
    }
  }
}

// Vectors with gaps between them, joints and poses backwards, data that does not lie on 16 bytes.
TEST(strides) {
  std::mt19937 random(3);
  const std::vector<float> values = scores(random, 6 * 100);
  for (const int shift : {0, 1, 4}) {
    HeatmapView x = HeatmapView::dense(values.data() + 500 + shift, DType::kFloat32, 2, 3, 1, 60), y = x;
    x.stride_b = -300, x.stride_n = -100;
    y.data = values.data() + shift, y.stride_b = 100, y.stride_n = 200, y.width = 77;
    Decoded want(6);
    port::decode_simcc(x, y, 2.0f, SimccScore::kMin, 0.3f, want.output(), 1, port::Isa::kGeneric);
    for (const bool together : {true, false}) CHECK(same(emulate(x, y, 2.0f, SimccScore::kMin, together, 1), want));
  }
}

// Without its one barrier, the warp that answers reads what nobody has written yet.
TEST(a_missing_barrier_is_caught) {
  std::mt19937 random(4);
  const Batch x = batch_of(scores(random, 384), DType::kFloat32, 1, 1, 1, 384);
  const Batch y = batch_of(scores(random, 512), DType::kFloat32, 1, 1, 1, 512);
  const Decoded right = emulate(x.view, y.view, 2.0f, SimccScore::kMin, true, 0);
  int wrong = 0;
  for (unsigned seed = 0; seed < 6; ++seed) {
    wrong += !same(emulate(x.view, y.view, 2.0f, SimccScore::kMin, true, seed, 0), right);
  }
  CHECK(wrong > 0);
}

int main() { return port_test::run_tests(); }
