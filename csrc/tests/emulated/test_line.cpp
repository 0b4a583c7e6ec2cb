// SPDX-License-Identifier: Apache-2.0
// Accuracy of the line kernels on the emulated GPU: every variant and precision against PORT in double, over shapes of
// network, numbers of joints, rules around the network, and the bundled models.
#include <cstdio>

#include "arguments.h"
#include "oracle.h"
#include "testing.h"

namespace {

using namespace port_test;
using port::CudaVariant;
using port::Precision;

struct Way {
  Precision precision;
  CudaVariant variant;
  std::string name() const { return std::string(port::to_string(precision)) + " " + port::to_string(variant); }
};

constexpr Way kWays[] = {
    {Precision::kFloat32, CudaVariant::kBlock},       {Precision::kFloat16, CudaVariant::kBlock},
    {Precision::kFloat16, CudaVariant::kCluster},     {Precision::kFloat16, CudaVariant::kThroughput},
    {Precision::kBfloat16, CudaVariant::kBlock},      {Precision::kBfloat16, CudaVariant::kCluster},
    {Precision::kBfloat16, CudaVariant::kThroughput},
};

// Every way against the oracle; of one precision, all ways must give the same bits.
void check_model(const std::shared_ptr<const port::Model>& model, const Poses& poses, const std::string& name,
                 float threshold = 0.3f) {
  static unsigned seed = 0;
  const Answer want = oracle(*model, poses, threshold);
  std::unique_ptr<DeviceModel> device;
  Precision last = Precision::kFloat32;
  std::unique_ptr<Answer> first;
  Distance allowed, allowed_std;
  for (const Way& way : kWays) {
    if (!device || way.precision != last) {
      device = std::make_unique<DeviceModel>(*model, way.precision);
      first.reset();
      last = way.precision;
      const Answer rounded = oracle(*model, poses, threshold, [&](double x) { return round_to(way.precision, x); });
      allowed = distance(rounded, want);  // what a framework loses in this precision
      allowed_std = std_distance(rounded, want);
    }
    Run run;
    run.precision = way.precision;
    run.variant = way.variant;
    run.seed = seed++ % 7;
    if (!port::plan_line(device->network, run.precision, run.variant, run.limits)) {
      CHECK_CASE(way.variant == CudaVariant::kCluster, name + " " + way.name());  // one slot, or too wide
      continue;
    }
    const Answer got = refine(*device, poses, run, threshold);
    const Distance d = distance(got, want);
    const Distance s = std_distance(got, want);
    const std::string label =
        name + " " + way.name() + ": " + std::to_string(d.largest) + " px, rms " + std::to_string(d.root_mean_square) +
        ", rounding " + std::to_string(allowed.root_mean_square) + "; std " + std::to_string(s.largest) + ", rms " +
        std::to_string(s.root_mean_square) + ", rounding " + std::to_string(allowed_std.root_mean_square);
    if (std::getenv("PORT_TEST_VERBOSE")) std::printf("%s\n", label.c_str());
    CHECK_CASE(got.mask == want.mask && same_bits(got.confidence, want.confidence), label);
    // Coordinates of about 2000 px have steps of 1.2e-4 px; the rounding of few poses is a noisy measure.
    const double floor = way.precision == Precision::kFloat32   ? 5e-4
                         : way.precision == Precision::kFloat16 ? 2e-3
                                                                : 1.6e-2;
    CHECK_CASE(d.root_mean_square <= 2.0 * allowed.root_mean_square + floor, label);
    CHECK_CASE(s.root_mean_square <= 2.0 * allowed_std.root_mean_square + std_floor(way.precision), label);
    for (std::size_t i = 0; i < got.mask.size(); ++i) {
      if (got.mask[i]) continue;
      CHECK_CASE(std::memcmp(&got.joints[2 * i], &poses.joints[2 * i], 2 * sizeof(float)) == 0, label);
    }
    if (first) CHECK_CASE(got == *first, label + " has other bits than the first variant");
    if (!first) first = std::make_unique<Answer>(got);
  }
}

std::string chain(int joints) {
  std::string names, bones;
  for (int i = 0; i < joints; ++i) names += (i ? ", \"j" : "\"j") + std::to_string(i) + "\"";
  for (int i = 1; i < joints; ++i) {
    const int parent = joints == 21 && i % 4 == 1 ? 0 : i - 1;
    bones += (i > 1 ? ", [" : "[") + std::to_string(parent) + ", " + std::to_string(i) + "]";
  }
  return R"({"name": "chain", "names": [)" + names + R"(], "bones": [)" + bones + R"(], "root": 0, "axis": 1})";
}

std::shared_ptr<const port::Model> chain_model(int joints, const std::string& more, const std::string& config) {
  return load(model_file(specification(more, config, chain(joints)), static_cast<unsigned>(joints)).bytes());
}

}  // namespace

TEST(numbers_of_joints) {
  for (const int n : {2, 5, 8, 9, 16, 17, 21, 24, 25, 32}) {
    const auto model = chain_model(n, R"("min_visible": 2)",
                                   R"({"width": 32, "layers": 2, "heads": 4, "head_dim": 16, "input_channels": 3,)"
                                   R"( "residual": true, "mask_embedding": false, "hops": [0, 2]})");
    Poses poses = make_poses(n == 21 ? 3 : 1, n, static_cast<unsigned>(n));
    poses.confidence[0] = 0.1f;  // something to do
    poses.confidence[1] = 0.9f;
    check_model(model, poses, std::to_string(n) + " joints", n < 5 ? 0.0f : 0.3f);
  }
}

TEST(shapes_of_network) {
  const char* configs[] = {
      R"({"width": 8, "layers": 1, "heads": 1, "head_dim": 8})",
      R"({"width": 24, "layers": 2, "heads": 3, "head_dim": 40, "hops": [1]})",
      R"({"width": 16, "layers": 3, "heads": 8, "head_dim": 8, "hops": [0, 1, 2, 3], "mlp_ratio": 1})",
      R"({"width": 40, "layers": 2, "heads": 2, "head_dim": 24, "share_hop_weights": true, "mlp_ratio": 3})",
      R"({"width": 72, "layers": 1, "heads": 6, "head_dim": 16, "attention_scale": "width", "se_reduction": 8})",
      R"({"width": 32, "layers": 2, "heads": 4, "head_dim": 16, "masked_coordinates": "zero", "input_channels": 3})",
      R"({"width": 128, "layers": 1, "heads": 12, "head_dim": 32, "mlp_ratio": 4})",
      R"({"width": 16, "layers": 5, "heads": 4, "head_dim": 16, "layer_norm_eps": 0.001, "se_reduction": 16})",
  };
  for (const char* config : configs) {
    const auto model = chain_model(17, "", config);
    check_model(model, make_poses(2, 17, 5), config);
  }
}

TEST(rules_around_the_network) {
  const char* config =
      R"({"width": 16, "layers": 1, "heads": 4, "head_dim": 8, "input_channels": 3, "residual": true})";
  const char* rules[] = {
      R"("frame": "paper", "frame_size": [1920, 1080])",
      R"("frame": "paper", "refine": "all", "fusion": 0.75)",
      R"("refine": "all")",
      R"("fusion": 0.25, "confidence_divisor": 0.75)",
      R"("max_masked": 5)",
      R"("min_visible": 12)",
  };
  for (const char* rule : rules) {
    Poses poses = make_poses(5, 16, 9);
    for (std::size_t j = 0; j < 16; ++j) poses.confidence[16 + j] = 0.9f;                   // none masked
    for (std::size_t j = 0; j < 32; ++j) poses.joints[64 + j] = 77.0f;                      // all in one place
    poses.joints[96 + 6] = NAN, poses.joints[96 + 9] = INFINITY, poses.joints[96] = -2e6f;  // missing
    poses.confidence[48 + 7] = NAN, poses.confidence[48 + 8] = INFINITY, poses.confidence[48 + 9] = -1.0f;
    check_model(chain_model(16, rule, config), poses, rule);
  }
}

TEST(bundled_models) {
  for (const char* name : {"hand21", "hand21-paper", "mpii16", "coco17", "h36m17"}) {
    const auto model = port::Model::load(std::string(PORT_MODELS) + "/" + name + ".safetensors");
    const Poses poses = make_poses(1, model->joints(), 3);
    check_model(model, poses, name, 0.3f);
  }
}

int main() { return port_test::run_tests(); }
