// SPDX-License-Identifier: Apache-2.0
// port::Refiner from outside: bits that must not change, neighbours, aliasing, overrides, agreement of instruction
// sets.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "dispatch.h"
#include "model_file.h"
#include "testing.h"

using namespace port_test;
using port::Options;
using port::Refiner;

namespace {

constexpr int kJoints = 7;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Batch {
  std::vector<float> joints, confidence;
  std::int64_t size() const { return static_cast<std::int64_t>(confidence.size()) / kJoints; }
};

Batch random_batch(int size, unsigned seed = 4) {
  std::mt19937 random(seed);
  std::normal_distribution<float> place(128.0f, 40.0f);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  Batch batch;
  for (int i = 0; i < size * kJoints; ++i) {
    batch.joints.insert(batch.joints.end(), {place(random), place(random)});
    batch.confidence.push_back(unit(random) < 0.25f ? 0.29f * unit(random) : 0.3f + 0.7f * unit(random));
  }
  return batch;
}

struct Result {
  std::vector<float> joints, confidence;
  std::vector<std::uint8_t> mask;
  port::Output out() { return {joints.data(), confidence.data(), mask.data()}; }
};

Result sized(std::int64_t batch) {
  const auto rows = static_cast<std::size_t>(batch * kJoints);
  return {std::vector<float>(2 * rows, -7.0f), std::vector<float>(rows, -7.0f), std::vector<std::uint8_t>(rows, 7)};
}

Result refine(const Refiner& refiner, const Batch& batch, float threshold = 0.3f) {
  Result result = sized(batch.size());
  refiner.refine(batch.joints.data(), batch.confidence.data(), batch.size(), threshold, result.out());
  return result;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Options options(int threads = 1) {
  Options o;
  o.threads = threads;
  o.min_visible = 3;
  return o;
}

std::vector<float> random_maps(int batch, int height, int width) {
  std::mt19937 random(8);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  std::vector<float> maps;
  for (int i = 0; i < batch * kJoints; ++i) {
    const float x0 = unit(random) * static_cast<float>(width), y0 = unit(random) * static_cast<float>(height);
    const float peak = 0.1f + 0.9f * unit(random);
    for (int p = 0; p < height * width; ++p) {
      const float dx = static_cast<float>(p % width) - x0, dy = static_cast<float>(p / width) - y0;
      maps.push_back(peak * std::exp(-(dx * dx + dy * dy) / 8.0f));
    }
  }
  return maps;
}

}  // namespace

TEST(unmasked_joints_are_copied_bit_for_bit) {
  const Refiner refiner(random_model(), options());
  Batch batch = random_batch(40);
  batch.joints[0] = -0.0f;
  const Result result = refine(refiner, batch);
  int rebuilt = 0;
  for (std::size_t i = 0; i < result.mask.size(); ++i) {
    const bool same = std::memcmp(&result.joints[2 * i], &batch.joints[2 * i], 8) == 0;
    CHECK(result.mask[i] == 0 || result.mask[i] == 1);
    CHECK(same == (result.mask[i] == 0));
    CHECK(result.mask[i] == 0 || (std::isfinite(result.joints[2 * i]) && batch.confidence[i] < 0.3f));
    rebuilt += result.mask[i];
  }
  CHECK(rebuilt > 20 && same_bits(result.confidence, batch.confidence));
}

TEST(a_bad_pose_is_its_own_problem) {
  const Refiner refiner(random_model(), options());
  const Batch good = random_batch(12);
  const Result want = refine(refiner, good);
  for (const float bad : {kNan, kInf, -kInf, 3e38f}) {
    Batch batch = good;
    std::fill_n(batch.joints.begin() + 5 * kJoints * 2, kJoints * 2, bad);
    std::fill_n(batch.confidence.begin() + 5 * kJoints, kJoints, bad);
    const Result got = refine(refiner, batch);
    for (std::size_t b = 0; b < 12; ++b) {
      const std::size_t row = b * kJoints;
      const float* expected = b == 5 ? &batch.joints[2 * row] : &want.joints[2 * row];
      CHECK(std::memcmp(&got.joints[2 * row], expected, kJoints * 8) == 0);
      for (std::size_t j = 0; j < kJoints; ++j) CHECK(got.mask[row + j] == (b == 5 ? 0 : want.mask[row + j]));
    }
  }
  Batch one = good;  // one missing joint of an otherwise good pose is rebuilt
  one.joints[2 * 3] = kNan;
  const Result got = refine(refiner, one);
  CHECK(got.mask[3] == 1 && std::isfinite(got.joints[6]) && std::isfinite(got.joints[7]));
}

TEST(results_do_not_depend_on_batch_or_threads) {
  const auto model = random_model();
  const Batch batch = random_batch(67);
  for (const port::Isa isa : port::available_isas()) {
    Options o = options();
    o.isa = isa;
    const Refiner single(model, o);
    o.threads = 5;
    const Refiner threaded(model, o);
    CHECK(threaded.threads() == 5 && threaded.isa() == isa);
    const Result want = refine(single, batch), got = refine(threaded, batch);
    CHECK(same_bits(want.joints, got.joints) && want.mask == got.mask);
    for (std::size_t b = 0; b < 67; ++b) {
      Batch one{{batch.joints.begin() + static_cast<std::ptrdiff_t>(b * kJoints * 2),
                 batch.joints.begin() + static_cast<std::ptrdiff_t>((b + 1) * kJoints * 2)},
                {batch.confidence.begin() + static_cast<std::ptrdiff_t>(b * kJoints),
                 batch.confidence.begin() + static_cast<std::ptrdiff_t>((b + 1) * kJoints)}};
      const Result alone = refine(single, one);
      CHECK(std::memcmp(alone.joints.data(), &want.joints[b * kJoints * 2], kJoints * 8) == 0);
    }
  }
}

TEST(instruction_sets_agree) {
  const auto model = random_model();
  const Batch batch = random_batch(30);
  Options o = options();
  o.isa = port::Isa::kGeneric;
  const Result want = refine(Refiner(model, o), batch);
  for (const port::Isa isa : port::available_isas()) {
    o.isa = isa;
    const Result got = refine(Refiner(model, o), batch);
    CHECK(got.mask == want.mask);
    for (std::size_t i = 0; i < want.joints.size(); ++i) CHECK(std::fabs(got.joints[i] - want.joints[i]) < 1e-3f);
  }
}

TEST(in_place_and_unwanted_outputs) {
  const Refiner refiner(random_model(), options(2));
  const Batch batch = random_batch(33);
  const Result want = refine(refiner, batch);
  Batch place = batch;
  std::vector<std::uint8_t> mask(place.confidence.size());
  refiner.refine(place.joints.data(), place.confidence.data(), 33, 0.3f,
                 {place.joints.data(), place.confidence.data(), mask.data()});
  CHECK(same_bits(place.joints, want.joints) && same_bits(place.confidence, want.confidence) && mask == want.mask);
  std::vector<float> joints(batch.joints.size());
  refiner.refine(batch.joints.data(), batch.confidence.data(), 33, 0.3f, {joints.data(), nullptr, nullptr});
  CHECK(same_bits(joints, want.joints));
}

TEST(overrides) {
  const auto model = random_model();
  const Batch batch = random_batch(20);
  Options o = options();
  o.max_masked = 0;
  CHECK(same_bits(refine(Refiner(model, o), batch).joints, batch.joints));
  o = options();
  o.min_visible = 8;
  CHECK(same_bits(refine(Refiner(model, o), batch).joints, batch.joints));
  o = options();
  o.refine = port::Refine::kAll;
  const Result all = refine(Refiner(model, o), batch);
  for (std::size_t b = 0; b < 20; ++b) {
    const auto pose = all.mask.begin() + static_cast<std::ptrdiff_t>(b * kJoints);
    CHECK(std::count(pose, pose + kJoints, 1) % kJoints == 0);
  }
  o = options();
  o.fusion = 0.0f;  // rebuilt, but with the detector's joints
  const Result none = refine(Refiner(model, o), batch);
  CHECK(std::count(none.mask.begin(), none.mask.end(), 1) > 10);
  for (std::size_t i = 0; i < none.joints.size(); ++i) CHECK(std::fabs(none.joints[i] - batch.joints[i]) < 1e-4f);
  const Result strict = refine(Refiner(model, options()), batch, 0.0f);  // a threshold of 0 masks nothing
  CHECK(same_bits(strict.joints, batch.joints));
}

TEST(run_is_decode_affine_refine) {
  const auto model = random_model();
  const int batch = 19, height = 32, width = 24;
  const std::vector<float> maps = random_maps(batch, height, width);
  const auto view = port::HeatmapView::dense(maps.data(), port::DType::kFloat32, batch, kJoints, height, width);
  std::vector<float> affine;
  for (int b = 0; b < batch; ++b) {
    const float shift = static_cast<float>(b);
    affine.insert(affine.end(), {4.0f, 0.0f, shift, 0.0f, 4.0f, -shift});
  }
  for (const int threads : {1, 3}) {
    for (const float* a : {static_cast<const float*>(nullptr), static_cast<const float*>(affine.data())}) {
      const Refiner refiner(model, options(threads));
      Result decoded = sized(batch), want = sized(batch), got = sized(batch);
      port::decode(view, model->codec(), model->temperature(), 0.3f, decoded.out());
      for (std::size_t i = 0; a && i < decoded.confidence.size(); ++i) {
        const float shift = static_cast<float>(i / kJoints);
        decoded.joints[2 * i] =
            static_cast<float>(4.0 * static_cast<double>(decoded.joints[2 * i]) + static_cast<double>(shift));
        decoded.joints[2 * i + 1] =
            static_cast<float>(4.0 * static_cast<double>(decoded.joints[2 * i + 1]) - static_cast<double>(shift));
      }
      refiner.refine(decoded.joints.data(), decoded.confidence.data(), batch, 0.3f, want.out());
      refiner.run(view, a, 0.3f, got.out());
      CHECK(same_bits(got.joints, want.joints) && same_bits(got.confidence, want.confidence) && got.mask == want.mask);
      CHECK(std::count(got.mask.begin(), got.mask.end(), 1) > 3);
    }
  }
}

TEST(empty_batches_touch_nothing) {
  const Refiner refiner(random_model(), options(2));
  refiner.refine(nullptr, nullptr, 0, 0.3f, {});
  refiner.run(port::HeatmapView::dense(nullptr, port::DType::kFloat32, 0, kJoints, 8, 8), nullptr, 0.3f, {});
  CHECK(refiner.workspace_bytes() > 0 && refiner.weight_bytes() > 0);
}

TEST(bad_arguments) {
  const auto model = random_model();
  const Refiner refiner(model, options());
  const Batch batch = random_batch(1);
  Result result = sized(1);
  const auto input = port::ErrorCode::kInput;
  const auto call = [&](const float* joints, std::int64_t size, float threshold, const port::Output& out) {
    refiner.refine(joints, batch.confidence.data(), size, threshold, out);
    return 0;
  };
  for (const float bad : {-0.1f, kNan, kInf})
    CHECK_ERROR(input, "threshold", call(batch.joints.data(), 1, bad, result.out()));
  CHECK_ERROR(input, "batch", call(batch.joints.data(), -1, 0.3f, result.out()));
  CHECK_ERROR(input, "null", call(nullptr, 1, 0.3f, result.out()));
  CHECK_ERROR(input, "null", call(batch.joints.data(), 1, 0.3f, port::Output{}));
  CHECK(result.joints[0] == -7.0f);
  const auto view = port::HeatmapView::dense(batch.joints.data(), port::DType::kFloat32, 1, 3, 1, 1);
  CHECK_ERROR(input, "skeleton 'chain'", (refiner.run(view, nullptr, 0.3f, result.out()), 0));
  CHECK_ERROR(input, "null", Refiner(nullptr));
  const auto with = [&model](auto change) {
    Options o;
    change(o);
    return Refiner(model, o);
  };
  CHECK_ERROR(input, "threads", with([](Options& o) { o.threads = -1; }));
  CHECK_ERROR(input, "threads", with([](Options& o) { o.threads = 1000; }));
  CHECK_ERROR(input, "min_visible", with([](Options& o) { o.min_visible = 1; }));
  CHECK_ERROR(input, "max_masked", with([](Options& o) { o.max_masked = -1; }));
  CHECK_ERROR(input, "fusion", with([](Options& o) { o.fusion = 1.5f; }));
  CHECK_ERROR(input, "fusion", with([](Options& o) { o.fusion = kNan; }));
  CHECK_ERROR(input, "temperature", with([](Options& o) { o.temperature = 0.0f; }));
  CHECK_ERROR(port::ErrorCode::kUnavailable, "fp32", with([](Options& o) {
                o.isa = port::Isa::kGeneric;
                o.precision = port::Precision::kBfloat16;
              }));
}

int main() { return run_tests(); }
