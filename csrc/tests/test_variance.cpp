// SPDX-License-Identifier: Apache-2.0
// Models with a variance: the head's third row in every instruction set, sigma around it, and joints that stay the bits
// that they are without it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>

#include "dispatch.h"
#include "line.h"
#include "model_file.h"
#include "network.h"
#include "network_reference.h"
#include "testing.h"

using namespace port_test;
using port::Isa;
using port::Options;
using port::Precision;
using port::Refiner;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kJoints = 7;
constexpr const char* kWithVariance =
    R"({"width": 16, "layers": 2, "heads": 2, "head_dim": 8, "hops": [0, 2], "se_reduction": 4, "input_channels": 3,)"
    R"( "residual": true, "mask_embedding": false, "variance": true})";

struct Answer {
  std::vector<float> joints, log_std;
};

Answer forward(const port::Network& network, const std::vector<float>& inputs, const std::vector<std::uint8_t>& mask,
               std::int64_t batch, bool wanted) {
  const std::size_t bytes = (network.workspace_bytes() + 63) / 64 * 64;
  std::unique_ptr<unsigned char[], void (*)(unsigned char*)> workspace(
      static_cast<unsigned char*>(::operator new[](bytes, std::align_val_t{64})),
      [](unsigned char* p) { ::operator delete[](p, std::align_val_t{64}); });
  std::memset(workspace.get(), 0xff, bytes);
  Answer answer{std::vector<float>(mask.size() * 2, kNan), std::vector<float>(mask.size(), kNan)};
  const std::vector<std::uint8_t> needed(mask.size(), 1);
  network.forward(inputs.data(), mask.data(), needed.data(), batch, answer.joints.data(),
                  wanted ? answer.log_std.data() : nullptr, workspace.get());
  return answer;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Batch {
  std::vector<float> joints, confidence;
  std::int64_t size() const { return static_cast<std::int64_t>(confidence.size()) / kJoints; }
};

Batch random_batch(int size) {
  std::mt19937 random(4);
  std::normal_distribution<float> place(128.0f, 40.0f);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  Batch batch;
  for (int i = 0; i < size * kJoints; ++i) {
    batch.joints.insert(batch.joints.end(), {place(random), place(random)});
    batch.confidence.push_back(unit(random));
  }
  return batch;
}

struct Result {
  std::vector<float> joints, std;
  std::vector<std::uint8_t> mask;
};

Result refine(const Refiner& refiner, const Batch& batch, bool wanted = true) {
  const std::size_t rows = batch.confidence.size();
  Result r{std::vector<float>(2 * rows, -7.0f), std::vector<float>(rows, -7.0f), std::vector<std::uint8_t>(rows, 7)};
  refiner.refine(batch.joints.data(), batch.confidence.data(), batch.size(), 0.3f,
                 {r.joints.data(), nullptr, r.mask.data(), wanted ? r.std.data() : nullptr});
  return r;
}

Options options(int threads = 1) {
  Options o;
  o.threads = threads;
  o.min_visible = 3;
  return o;
}

}  // namespace

TEST(log_sigma_is_the_third_row_and_the_joints_stay_the_bits_they_were) {
  for (const int joints : {5, 16, 21}) {
    for (const int width : {16, 64, 72}) {
      port::NetworkConfig config;
      config.width = width, config.layers = 2, config.head_dim = 16, config.variance = true;
      const port::ModelSpec spec = make_spec(joints, config);
      const port::Tensors tensors = make_tensors(spec);
      port::ModelSpec plain_spec = spec;
      plain_spec.config.variance = false;
      port::Tensors plain = tensors;
      plain["head.out.weight"].values.resize(static_cast<std::size_t>(2 * width));
      plain["head.out.bias"].values.resize(2);

      std::mt19937 generator(7);
      std::normal_distribution<float> normal;
      const std::size_t rows = static_cast<std::size_t>(3 * joints);
      std::vector<float> inputs(rows * 2);
      std::vector<std::uint8_t> mask;
      for (float& v : inputs) v = normal(generator);
      for (std::size_t i = 0; i < rows; ++i) mask.push_back(generator() % 10 < 3);
      std::vector<double> exact, rounded;
      for (std::ptrdiff_t b = 0; b < 3; ++b) {
        const float* pose = inputs.data() + b * joints * 2;
        Reference{spec, tensors, keep}(pose, mask.data() + b * joints, &exact);
        Reference{spec, tensors, to_bf16}(pose, mask.data() + b * joints, &rounded);
      }
      double plain_bf16 = 0.0;
      for (std::size_t i = 0; i < rows; ++i) plain_bf16 += (rounded[i] - exact[i]) * (rounded[i] - exact[i]);

      for (const Isa isa : port::available_isas()) {
        for (const Precision precision : {Precision::kFloat32, Precision::kBfloat16}) {
          if (precision == Precision::kBfloat16 && (isa != Isa::kAvx512 || !port::bf16_available())) continue;
          const auto network = port::make_network(spec, tensors, isa, precision);
          const Answer got = forward(*network, inputs, mask, 3, true);
          CHECK(same_bits(got.joints, forward(*network, inputs, mask, 3, false).joints));
          const auto without = port::make_network(plain_spec, plain, isa, precision);
          CHECK(same_bits(got.joints, forward(*without, inputs, mask, 3, false).joints));
          double largest = 0.0, squares = 0.0;
          for (std::size_t i = 0; i < rows; ++i) {
            const double error = std::fabs(static_cast<double>(got.log_std[i]) - exact[i]);
            largest = error <= largest ? largest : error;
            squares += error * error;
          }
          if (precision == Precision::kFloat32) CHECK(largest <= 2e-5);
          if (precision == Precision::kBfloat16) CHECK(squares <= 4.0 * plain_bf16);
        }
      }
    }
  }
}

TEST(sigma_is_in_pixels_and_clamped) {
  port::ModelSpec spec = make_spec(3);
  spec.config.variance = true;
  spec.std_scale = 2.0f;
  port::PoseFrame frame{};
  frame.unit = 10.0;
  const float log_std[3] = {-1.0f, 5.0f, -50.0f};
  const std::uint8_t all[3] = {1, 1, 1}, one[3] = {0, 1, 0};
  float std[3];
  port::finish_std(port::LineSettings(spec), frame, log_std, all, std);
  CHECK(std::fabs(std[0] - 20.0f * std::exp(-1.0f)) < 1e-5f && std[1] == 20.0f);
  CHECK(std::fabs(std[2] - 20.0f * std::exp(-7.0f)) < 1e-7f);
  const float unread[3] = {kNan, -1.0f, kNan};
  port::finish_std(port::LineSettings(spec), frame, unread, one, std);
  CHECK(std::isnan(std[0]) && std[1] > 0.0f && std::isnan(std[2]));
  spec.frame = port::Frame::kPaper;
  spec.frame_size = {400.0f, 100.0f};
  port::finish_std(port::LineSettings(spec), frame, log_std, all, std);
  CHECK(std[1] == 400.0f);  // 2 * sqrt(400 * 100), whatever the pose's unit
}

TEST(std_is_where_the_mask_is) {
  for (const char* more : {"", R"("refine": "all")", R"("max_masked": 2)"}) {
    const Refiner refiner(random_model(more, kWithVariance), options());
    CHECK(refiner.model().variance());
    Batch batch = random_batch(40);
    batch.joints[3] = kNan;
    const Result got = refine(refiner, batch);
    CHECK(std::count(got.mask.begin(), got.mask.end(), 1) > 20);
    for (std::size_t i = 0; i < got.std.size(); ++i) {
      CHECK(got.mask[i] ? got.std[i] > 0.0f && std::isfinite(got.std[i]) : std::isnan(got.std[i]));
    }
    CHECK(same_bits(got.joints, refine(refiner, batch, false).joints));
  }
}

TEST(std_does_not_depend_on_batch_threads_or_way) {
  const auto model = random_model("", kWithVariance);
  const Batch batch = random_batch(67);
  for (const Isa isa : port::available_isas()) {
    Options o = options();
    o.isa = isa;
    const Refiner single(model, o);
    const Result want = refine(single, batch);
    o.threads = 5;
    CHECK(same_bits(refine(Refiner(model, o), batch).std, want.std));
    for (std::size_t b = 0; b < 67; ++b) {
      const auto at = static_cast<std::ptrdiff_t>(b * kJoints);
      const Batch one{{batch.joints.begin() + 2 * at, batch.joints.begin() + 2 * (at + kJoints)},
                      {batch.confidence.begin() + at, batch.confidence.begin() + at + kJoints}};
      CHECK(std::memcmp(refine(single, one).std.data(), want.std.data() + at, kJoints * sizeof(float)) == 0);
    }
  }
  // The same joints as heatmaps: a single bright pixel decodes to itself.
  std::vector<float> maps(static_cast<std::size_t>(2 * kJoints * 20 * 30), 0.0f), std(2 * kJoints), joints(4 * kJoints);
  Batch found;
  for (int i = 0; i < 2 * kJoints; ++i) {
    const int x = (7 * i) % 30, y = (11 * i) % 20;
    const float confidence = i % 3 ? 0.9f : 0.2f;
    maps[static_cast<std::size_t>((i * 20 + y) * 30 + x)] = confidence;
    found.joints.insert(found.joints.end(), {static_cast<float>(x), static_cast<float>(y)});
    found.confidence.push_back(confidence);
  }
  Options o = options();
  o.codec = port::Codec::kArgmax;
  const Refiner refiner(model, o);
  const auto view = port::HeatmapView::dense(maps.data(), port::DType::kFloat32, 2, kJoints, 20, 30);
  refiner.run(view, nullptr, 0.3f, {joints.data(), nullptr, nullptr, std.data()});
  const Result want = refine(refiner, found);
  CHECK(same_bits(std, want.std) && std::count(want.mask.begin(), want.mask.end(), 1) > 3);
}

TEST(models_without_a_variance_refuse_it) {
  const Refiner refiner(random_model(), options());
  const Batch batch = random_batch(2);
  CHECK_ERROR(port::ErrorCode::kInput, "no variance", refine(refiner, batch));
}

int main() { return run_tests(); }
