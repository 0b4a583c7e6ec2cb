// SPDX-License-Identifier: Apache-2.0
// The line kernels on the emulated GPU as calls: from heatmaps, batches of any size, poses that do not know each other,
// the order of threads, small devices, and planted faults that must show.
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
    R"( "mask_embedding": false})";

Run variant(CudaVariant which, unsigned seed = 2) {
  Run run;
  run.variant = which;
  run.seed = seed;
  return run;
}

Poses part(const Poses& all, std::int64_t first, std::int64_t count) {
  const auto n = static_cast<std::ptrdiff_t>(all.confidence.size()) / all.batch;
  Poses poses;
  poses.batch = count;
  poses.joints.assign(all.joints.begin() + first * n * 2, all.joints.begin() + (first + count) * n * 2);
  poses.confidence.assign(all.confidence.begin() + first * n, all.confidence.begin() + (first + count) * n);
  return poses;
}

// Maps [B][N][h][w] with a peak each, of any height.
std::vector<float> make_maps(std::int64_t count, int height, int width, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  std::vector<float> maps;
  for (std::int64_t i = 0; i < count; ++i) {
    const float x0 = unit(random) * static_cast<float>(width), y0 = unit(random) * static_cast<float>(height);
    const float peak = unit(random);
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        const float dx = static_cast<float>(x) - x0, dy = static_cast<float>(y) - y0;
        maps.push_back(peak * std::exp(-(dx * dx + dy * dy) / 8.0f) + 0.02f * (unit(random) - 0.5f));
      }
    }
  }
  return maps;
}

Answer from_maps(const DeviceModel& device, const port::HeatmapView& view, const float* affine, const Run& run,
                 port::emulated::Counts* counts = nullptr) {
  Answer answer(static_cast<std::size_t>(view.batch * view.joints), device.variance);
  port::kernels::LineParams params{};
  params.net = device.network;
  params.rules = device.rules;
  params.maps = port::maps_of(view, port::Codec::kSoftargmax, 40.0f);
  params.affine = affine;
  params.out = port::results_of(answer.output());
  params.batch = view.batch;
  params.threshold = 0.3f;
  const port::emulated::Counts counted = launch_line(params, run);
  if (counts) *counts = counted;
  return answer;
}

}  // namespace

TEST(from_heatmaps) {
  const auto model = random_model("", kSmall);
  const int n = model->joints();
  const std::int64_t batch = 3;
  std::vector<float> maps = make_maps(batch * n, 24, 20, 1), affine;
  maps[24 * 20 + 7] = NAN;  // joint 1 of pose 0 is missing
  for (int b = 0; b < batch; ++b) {
    affine.insert(affine.end(), {8.0f, 0.5f, 300.0f + static_cast<float>(b), -0.5f, 8.0f, 200.0f});
  }
  const auto view = port::HeatmapView::dense(maps.data(), port::DType::kFloat32, batch, n, 24, 20);
  port::Options options;
  options.threads = 1;
  const port::Refiner refiner(model, options);
  for (const float* to_image : {static_cast<const float*>(nullptr), static_cast<const float*>(affine.data())}) {
    Answer want(static_cast<std::size_t>(batch * n));
    refiner.run(view, to_image, 0.3f, want.output());
    for (const Precision precision : {Precision::kFloat32, Precision::kFloat16}) {
      const DeviceModel device(*model, precision);
      std::unique_ptr<Answer> first;
      for (const CudaVariant which : kVariants) {
        if (precision == Precision::kFloat32 && which != CudaVariant::kBlock) continue;
        Run run = variant(which);
        run.precision = precision;
        const Answer got = from_maps(device, view, to_image, run);
        const std::string name = std::string(port::to_string(precision)) + " " + port::to_string(which);
        const double limit = precision == Precision::kFloat32 ? 1e-3 : 0.1;
        CHECK_CASE(distance(got, want).largest < limit, name + std::to_string(distance(got, want).largest));
        CHECK_CASE(got.mask == want.mask, name);
        if (first) CHECK_CASE(got == *first, name + " has other bits");
        first = std::make_unique<Answer>(got);
      }
    }
  }
}

// A pose alone, in any batch, in a grid too small for the batch, and beside a pose of nothing but NaN: the same bits.
TEST(poses_do_not_know_each_other) {
  const auto model = random_model("", kSmall);
  const DeviceModel device(*model, Precision::kFloat16);
  Poses all = make_poses(7, model->joints(), 4);
  const auto n = static_cast<std::size_t>(model->joints());
  for (std::size_t i = 0; i < 2 * n; ++i) all.joints[3 * 2 * n + i] = NAN;
  const Answer whole = refine(device, all, variant(CudaVariant::kBlock));
  for (const CudaVariant which : kVariants) {
    Run run = variant(which, 3);
    run.grid = 2;
    CHECK(refine(device, all, run) == whole);
    for (std::int64_t b = 0; b < all.batch; ++b) {
      const Answer alone = refine(device, part(all, b, 1), variant(which, static_cast<unsigned>(b)));
      for (std::size_t i = 0; i < 2 * n; ++i) {
        CHECK(std::memcmp(&alone.joints[i], &whole.joints[static_cast<std::size_t>(b) * 2 * n + i], 4) == 0);
      }
    }
  }
}

TEST(in_place) {
  const auto model = random_model("", kSmall);
  const DeviceModel device(*model, Precision::kFloat16);
  const Poses poses = make_poses(3, model->joints(), 5);
  for (const CudaVariant which : kVariants) {
    const Answer apart = refine(device, poses, variant(which));
    Poses same = poses;
    std::vector<std::uint8_t> mask(same.confidence.size(), 7);
    port::kernels::LineParams params{};
    params.net = device.network;
    params.rules = device.rules;
    params.joints = same.joints.data();
    params.confidence = same.confidence.data();
    params.out = {same.joints.data(), same.confidence.data(), mask.data(), nullptr, nullptr};
    params.batch = same.batch;
    params.threshold = 0.3f;
    launch_line(params, variant(which));
    CHECK(same_bits(same.joints, apart.joints) && same_bits(same.confidence, poses.confidence) && mask == apart.mask);
  }
}

// What fits no second stage of weights, or not all heads at once, gives the same bits.
TEST(small_devices) {
  const auto model = random_model("", kSmall);
  const DeviceModel device(*model, Precision::kFloat16);
  const Poses poses = make_poses(2, model->joints(), 6);
  const Answer want = refine(device, poses, variant(CudaVariant::kBlock));
  for (const CudaVariant which : kVariants) {
    Run run = variant(which);
    const auto largest = port::plan_line(device.network, run.precision, which, run.limits);
    int shapes = 0;
    for (std::size_t limit = largest->layout.total; limit > 0;) {
      run.limits.shared_per_block = limit;
      const auto plan = port::plan_line(device.network, run.precision, which, run.limits);
      if (!plan) break;
      ++shapes;
      CHECK(refine(device, poses, run) == want);
      limit = plan->layout.total - 1;
    }
    CHECK_CASE(shapes >= 2, port::to_string(which));
  }
  port::DeviceLimits old;
  old.major = 7, old.minor = 5, old.shared_per_block = 64 << 10;
  CHECK(!port::plan_line(device.network, Precision::kBfloat16, CudaVariant::kBlock, old));
  CHECK(!port::plan_line(device.network, Precision::kFloat16, CudaVariant::kCluster, old));
  const DeviceModel hand(*port::Model::load(PORT_MODELS "/hand21.safetensors"), Precision::kFloat16);
  CHECK(port::plan_line(hand.network, Precision::kFloat16, CudaVariant::kBlock, old).has_value());
  old.major = 8, old.minor = 6, old.shared_per_block = 99 << 10;
  CHECK(port::plan_line(hand.network, Precision::kFloat16, CudaVariant::kThroughput, old).has_value());
}

// The GeForce and RTX PRO of 12.x: clusters, but 99 KB a block, so that no copy of the weights fits beside a pose.
TEST(clusters_without_copies_of_weights) {
  Run small;
  small.variant = CudaVariant::kCluster;
  small.limits.major = 12, small.limits.minor = 0, small.limits.shared_per_block = 99 << 10;
  for (const char* name : {"hand21", "coco17", "hand21-paper"}) {
    const auto model = port::Model::load(std::string(PORT_MODELS "/") + name + ".safetensors");
    const DeviceModel device(*model, Precision::kFloat16);
    const auto plan = port::plan_line(device.network, Precision::kFloat16, CudaVariant::kCluster, small.limits);
    CHECK(plan && plan->blocks == 4 && plan->stages == 0);
    const Poses poses = make_poses(2, model->joints(), 11);
    const Answer want = refine(device, poses, variant(CudaVariant::kCluster));
    for (small.seed = 0; small.seed < 4; ++small.seed) CHECK_CASE(refine(device, poses, small) == want, name);
  }
}

// Every barrier is there for something: without it, some order of threads gives other numbers (or a misuse that the
// machine sees). The network is one whose steps fall on other warps than the steps before them.
TEST(every_missing_barrier_is_caught) {
  const auto model = random_model("", R"({"width": 32, "layers": 2, "heads": 4, "head_dim": 24})");
  const int n = model->joints();
  const std::vector<float> maps = make_maps(4 * n, 16, 16, 8);
  const DeviceModel device(*model, Precision::kFloat16);
  for (const CudaVariant which : {CudaVariant::kThroughput, CudaVariant::kCluster}) {
    // One block that comes back for a second pair of poses; one cluster.
    const std::int64_t batch = which == CudaVariant::kCluster ? 1 : 4;
    const auto view = port::HeatmapView::dense(maps.data(), port::DType::kFloat32, batch, n, 16, 16);
    Run run = variant(which);
    run.grid = 1;
    port::emulated::Counts counts;
    const Answer want = from_maps(device, view, nullptr, run, &counts);
    CHECK(!counts.stopped && counts.block_barriers > 15);
    run.tolerant = true;
    const auto caught = [&](int block_barrier, int cluster_barrier) {
      run.skip_barrier = block_barrier, run.skip_cluster_barrier = cluster_barrier;
      for (run.seed = 0; run.seed < 24; ++run.seed) {
        if (!(from_maps(device, view, nullptr, run, &counts) == want) || counts.stopped) return true;
      }
      return false;
    };
    const int block_barriers = counts.block_barriers, cluster_barriers = counts.cluster_barriers;
    for (int i = 0; i < block_barriers; ++i) {
      CHECK_CASE(caught(i, -1), std::string(port::to_string(which)) + " block barrier " + std::to_string(i));
    }
    for (int i = 0; i < cluster_barriers; ++i) {
      CHECK_CASE(caught(-1, i), "cluster barrier " + std::to_string(i));
    }
  }
}

// Wrong by one: the offset of every part of the blob, and a row of shared memory.
TEST(every_wrong_index_is_caught) {
  const auto model = random_model("", R"({"width": 16, "layers": 2, "heads": 4, "head_dim": 8})");
  const Poses poses = make_poses(2, model->joints(), 9);
  DeviceModel device(*model, Precision::kFloat16);
  const Answer want = refine(device, poses, variant(CudaVariant::kBlock));
  using port::kernels::Network;
  const std::pair<const char*, std::uint32_t Network::*> offsets[] = {{"shares", &Network::shares},
                                                                      {"qk", &Network::qk},
                                                                      {"value", &Network::value},
                                                                      {"fc1", &Network::fc1},
                                                                      {"fc2", &Network::fc2},
                                                                      {"qk_bias", &Network::qk_bias},
                                                                      {"value_bias", &Network::value_bias},
                                                                      {"fc1_bias", &Network::fc1_bias},
                                                                      {"embed", &Network::embed},
                                                                      {"out_bias", &Network::out_bias},
                                                                      {"fc2_bias", &Network::fc2_bias},
                                                                      {"se1", &Network::se1},
                                                                      {"se1_bias", &Network::se1_bias},
                                                                      {"se2", &Network::se2},
                                                                      {"se2_bias", &Network::se2_bias},
                                                                      {"head", &Network::head},
                                                                      {"head_bias", &Network::head_bias}};
  for (const auto& [name, member] : offsets) {
    const Network right = device.network;
    const bool tiles = std::string(name) == "shares" || device.network.*member < device.network.qk_bias;
    device.network.*member += tiles ? 16 : 4;  // one lane of a tile, or one float
    if (std::string(name) == "head_bias") device.network.*member -= 8;
    CHECK_CASE(!(refine(device, poses, variant(CudaVariant::kBlock)) == want), name);
    device.network = right;
  }
}

int main() { return port_test::run_tests(); }
