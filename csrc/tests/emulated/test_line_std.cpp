// SPDX-License-Identifier: Apache-2.0
// Standard deviations from the line kernels on the emulated GPU, of models with a variance: against PORT in double in
// every variant and precision, NaN where a joint is the detector's, not wanted, and models without one.
#include <algorithm>
#include <cstdio>

#include "oracle.h"
#include "testing.h"

namespace {

using namespace port_test;
using port::CudaVariant;
using port::Precision;

constexpr CudaVariant kVariants[] = {CudaVariant::kBlock, CudaVariant::kCluster, CudaVariant::kThroughput};
constexpr const char* kSmall =
    R"({"width": 32, "layers": 2, "heads": 4, "head_dim": 16, "input_channels": 3, "residual": true,)"
    R"( "mask_embedding": false, "variance": true})";

std::string chain(int joints) {
  std::string names, bones;
  for (int i = 0; i < joints; ++i) names += (i ? ", \"j" : "\"j") + std::to_string(i) + "\"";
  for (int i = 1; i < joints; ++i) {
    bones += (i > 1 ? ", [" : "[") + std::to_string(i - 1) + ", " + std::to_string(i) + "]";
  }
  return R"({"name": "chain", "names": [)" + names + R"(], "bones": [)" + bones + R"(], "root": 0, "axis": 1})";
}

std::shared_ptr<const port::Model> chain_model(int joints, const std::string& more, const std::string& config) {
  return load(model_file(specification(more, config, chain(joints)), static_cast<unsigned>(joints)).bytes());
}

// The same model without its third row.
std::unique_ptr<const port::Model> without_variance(const port::Model& model) {
  auto data = std::make_unique<port::ModelData>(model.data());
  data->spec.config.variance = false;
  data->tensors.at("head.out.weight").values.resize(static_cast<std::size_t>(2 * data->spec.config.width));
  data->tensors.at("head.out.bias").values.resize(2);
  return std::make_unique<const port::Model>(std::move(data));
}

port::kernels::LineParams params_of(const DeviceModel& device, const Poses& poses, Answer* answer) {
  port::kernels::LineParams params{};
  params.net = device.network;
  params.rules = device.rules;
  params.joints = poses.joints.data();
  params.confidence = poses.confidence.data();
  params.out = port::results_of(answer->output());
  params.batch = poses.batch;
  params.threshold = 0.3f;
  return params;
}

// Every variant of every precision: std as the oracle has it, the same bits in all variants, and joints that neither
// std's absence nor that of the variance changes. Answers how many joints have a number.
std::ptrdiff_t check_model(const std::shared_ptr<const port::Model>& model, const Poses& poses,
                           const std::string& name) {
  static unsigned seed = 0;
  const Answer want = oracle(*model, poses, 0.3f);
  const auto plain_model = without_variance(*model);
  for (const Precision precision : {Precision::kFloat32, Precision::kFloat16, Precision::kBfloat16}) {
    const DeviceModel device(*model, precision), plain(*plain_model, precision);
    const Answer rounded = oracle(*model, poses, 0.3f, [&](double x) { return round_to(precision, x); });
    const double allowed = 2.0 * std_distance(rounded, want).root_mean_square + std_floor(precision);
    std::unique_ptr<Answer> first;
    for (const CudaVariant variant : kVariants) {
      Run run;
      run.precision = precision, run.variant = variant, run.seed = seed++ % 7;
      if (!port::plan_line(device.network, precision, variant, run.limits)) continue;
      const Answer got = refine(device, poses, run);
      const double error = std_distance(got, want).root_mean_square;
      const std::string label = name + " " + port::to_string(precision) + " " + port::to_string(variant) + ": std " +
                                std::to_string(error) + ", allowed " + std::to_string(allowed);
      if (std::getenv("PORT_TEST_VERBOSE")) std::printf("%s\n", label.c_str());
      CHECK_CASE(error <= allowed, label);
      for (std::size_t i = 0; i < got.mask.size(); ++i) {
        CHECK_CASE(got.mask[i] ? got.std[i] > 0.0f && std::isfinite(got.std[i]) : std::isnan(got.std[i]), label);
      }
      if (first) CHECK_CASE(got == *first, label + " has other bits than the first variant");
      if (!first) first = std::make_unique<Answer>(got);
      Answer unwanted(got.mask.size());
      launch_line(params_of(device, poses, &unwanted), run);
      const Answer without = refine(plain, poses, run);
      CHECK_CASE(without == unwanted && same_bits(got.joints, without.joints) && got.mask == without.mask, label);
    }
  }
  return std::count(want.mask.begin(), want.mask.end(), 1);
}

}  // namespace

TEST(numbers_of_joints_and_shapes) {
  for (const int n : {5, 8, 16, 21, 32}) {
    CHECK(check_model(chain_model(n, R"("min_visible": 2, "std_scale": 1.5)", kSmall),
                      make_poses(3, n, static_cast<unsigned>(n)), std::to_string(n) + " joints") > 0);
  }
  for (const char* config : {R"({"width": 8, "layers": 1, "heads": 1, "head_dim": 8, "variance": true})",
                             R"({"width": 72, "layers": 1, "heads": 6, "head_dim": 16, "se_reduction": 8,)"
                             R"( "variance": true})"}) {
    CHECK(check_model(chain_model(17, "", config), make_poses(2, 17, 5), config) > 0);
  }
}

TEST(rules_around_the_network) {
  for (const char* rule : {R"("frame": "paper", "frame_size": [1920, 1080], "std_scale": 0.5)", R"("refine": "all")",
                           R"("fusion": 0.25)", R"("max_masked": 5)"}) {
    Poses poses = make_poses(5, 16, 9);
    for (std::size_t j = 0; j < 16; ++j) poses.confidence[16 + j] = 0.9f;  // none masked
    for (std::size_t j = 0; j < 32; ++j) poses.joints[64 + j] = 77.0f;     // all in one place
    poses.joints[96 + 6] = NAN;
    CHECK(check_model(chain_model(16, rule, kSmall), poses, rule) > 0);
  }
}

TEST(log_sigma_is_clamped) {
  const auto model = random_model("", kSmall);
  const Poses poses = make_poses(2, model->joints(), 4);
  for (const float bias : {40.0f, -40.0f}) {
    auto data = std::make_unique<port::ModelData>(model->data());
    data->tensors.at("head.out.bias").values[2] = bias;
    const port::Model moved(std::move(data));
    const DeviceModel device(moved, Precision::kFloat32);
    Run run;
    run.precision = Precision::kFloat32;
    const Answer got = refine(device, poses, run), want = oracle(moved, poses, 0.3f);
    CHECK(std::count(want.mask.begin(), want.mask.end(), 1) > 0);
    CHECK(std_distance(got, want).largest < 2e-6);
  }
}

TEST(from_heatmaps) {
  const auto model = random_model("", kSmall);
  const auto n = static_cast<std::size_t>(model->joints());
  const std::int64_t batch = 3;
  std::vector<float> maps(3 * n * 20 * 16, 0.0f);
  std::mt19937 random(2);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  for (std::size_t i = 0; i < 3 * n; ++i)
    maps[i * 320 + static_cast<std::size_t>(unit(random) * 319.0f)] = unit(random);
  const auto view = port::HeatmapView::dense(maps.data(), port::DType::kFloat32, batch, model->joints(), 20, 16);
  Answer want(3 * n, true);
  port::Options options;
  options.threads = 1;
  options.codec = port::Codec::kArgmax;
  port::Refiner(model, options).run(view, nullptr, 0.3f, want.output());
  CHECK(std::count(want.mask.begin(), want.mask.end(), 1) > 0);
  const DeviceModel device(*model, Precision::kFloat16);
  for (const CudaVariant variant : kVariants) {
    Answer got(3 * n, true);
    port::kernels::LineParams params = params_of(device, {batch, {}, {}}, &got);
    params.maps = port::maps_of(view, port::Codec::kArgmax, 40.0f);
    Run run;
    run.variant = variant, run.seed = 3;
    launch_line(params, run);
    CHECK_CASE(got.mask == want.mask && std_distance(got, want).largest < 0.02, port::to_string(variant));
  }
}

// Wrong by one: the third row of the head and its bias change std and nothing else.
TEST(the_third_row_is_read_by_std_alone) {
  const auto model = random_model("", kSmall);
  const Poses poses = make_poses(2, model->joints(), 6);
  DeviceModel device(*model, Precision::kFloat16);
  const Answer want = refine(device, poses, {});
  const std::uint32_t row = 4u * static_cast<std::uint32_t>(device.network.width_ld);
  for (const std::uint32_t at : {device.network.head + 2 * row + 4, device.network.head_bias + 8}) {
    float value;
    std::memcpy(&value, device.memory.get() + at, 4);
    const float moved = value - 0.5f;
    std::memcpy(device.memory.get() + at, &moved, 4);
    const Answer got = refine(device, poses, {});
    CHECK(same_bits(got.joints, want.joints) && !same_bits(got.std, want.std));
    std::memcpy(device.memory.get() + at, &value, 4);
  }
}

int main() { return port_test::run_tests(); }
