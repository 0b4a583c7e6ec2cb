// SPDX-License-Identifier: Apache-2.0
// The CUDA path on a real GPU against the processor: every variant and precision, batches past every boundary, heatmaps
// of every type, streams, threads, graphs. Outputs start poisoned; inputs are new in every check.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "device_array.h"
#include "gpu_main.h"
#include "model_file.h"
#include "port/cuda.hpp"
#include "testing.h"

namespace {

using port::CudaVariant;
using port::Precision;
using port_test::DeviceArray;
using port_test::must;

struct Way {
  Precision precision;
  std::optional<CudaVariant> variant;
};

std::vector<Way> ways() {
  return {{Precision::kFloat32, {}},
          {Precision::kFloat16, {}},
          {Precision::kFloat16, CudaVariant::kBlock},
          {Precision::kFloat16, CudaVariant::kCluster},
          {Precision::kFloat16, CudaVariant::kThroughput},
          {Precision::kBfloat16, CudaVariant::kBlock},
          {Precision::kBfloat16, CudaVariant::kCluster},
          {Precision::kBfloat16, CudaVariant::kThroughput}};
}

std::string name_of(const Way& way) {
  return std::string(port::to_string(way.precision)) + " " + (way.variant ? port::to_string(*way.variant) : "auto");
}

// Null where this GPU has not what the way needs, which must be what it says.
std::unique_ptr<port::CudaRefiner> make(const std::shared_ptr<const port::Model>& model, const Way& way) {
  port::CudaOptions options;
  options.precision = way.precision;
  options.variant = way.variant;
  try {
    return std::make_unique<port::CudaRefiner>(model, options);
  } catch (const port::Error& error) {
    const int major = port::cuda_info().devices[0].major;
    const bool old = (way.precision == Precision::kBfloat16 && major < 8) ||
                     (way.variant == CudaVariant::kCluster && major < 9) || way.variant == CudaVariant::kThroughput;
    CHECK_CASE(old && error.code() == port::ErrorCode::kUnavailable, name_of(way) + ": " + error.what());
    return nullptr;
  }
}

struct Poses {
  std::int64_t batch;
  std::vector<float> joints, confidence;
};

Poses make_poses(std::int64_t batch, int n, unsigned seed) {
  Poses poses{batch, {}, {}};
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (int j = 0; j < n; ++j) {
      poses.joints.push_back(300.0f + 200.0f * unit(random));
      poses.joints.push_back(100.0f + 200.0f * unit(random));
      poses.confidence.push_back(0.9f * unit(random));
    }
    if (b % 7 == 3) poses.joints[static_cast<std::size_t>(b * n * 2)] = NAN;
  }
  return poses;
}

struct Answer {
  std::vector<float> joints, confidence;
  std::vector<std::uint8_t> mask;
  std::vector<float> std;  // of a model with a variance
};

bool same(const Answer& a, const Answer& b) {
  const auto equal = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
  };
  return equal(a.joints, b.joints) && equal(a.confidence, b.confidence) && a.mask == b.mask && equal(a.std, b.std);
}

double largest_error(const Answer& got, const Answer& want) {
  double largest = 0.0;
  for (std::size_t i = 0; i < want.joints.size(); ++i) {
    const float a = got.joints[i], b = want.joints[i];
    if (std::isnan(a) && std::isnan(b)) continue;
    largest = std::isnan(a) || std::isnan(b) ? 1e9 : std::max(largest, std::fabs(static_cast<double>(a - b)));
  }
  return largest;
}

double largest_std_error(const Answer& got, const Answer& want) {  // relative
  double largest = got.std.size() == want.std.size() ? 0.0 : 1e9;
  for (std::size_t i = 0; i < want.std.size(); ++i) {
    const double a = static_cast<double>(got.std[i]), b = static_cast<double>(want.std[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    largest = std::isnan(a) || std::isnan(b) ? 1e9 : std::max(largest, std::fabs(a / b - 1.0));
  }
  return largest;
}

double allowed_std(Precision precision) {  // STD_TOLERANCE of verify.py
  return precision == Precision::kFloat32 ? 1e-3 : precision == Precision::kFloat16 ? 0.1 : 0.5;
}

double allowed(Precision precision) {  // pixels, poses of 200 px
  return precision == Precision::kFloat32 ? 1e-3 : precision == Precision::kFloat16 ? 0.5 : 8.0;
}

Answer on_gpu(const port::CudaRefiner& refiner, const Poses& poses, cudaStream_t stream = nullptr) {
  const DeviceArray<float> joints(poses.joints), confidence(poses.confidence);
  const DeviceArray<float> out_joints(poses.joints.size()), out_confidence(poses.confidence.size());
  const DeviceArray<std::uint8_t> mask(poses.confidence.size());
  const DeviceArray<float> std(refiner.model().variance() ? poses.confidence.size() : 0);
  refiner.refine(
      joints.data(), confidence.data(), poses.batch, 0.3f,
      {out_joints.data(), out_confidence.data(), mask.data(), refiner.model().variance() ? std.data() : nullptr},
      stream);
  return {out_joints.get(), out_confidence.get(), mask.get(), std.get()};
}

Answer on_processor(const std::shared_ptr<const port::Model>& model, const Poses& poses) {
  Answer a{std::vector<float>(poses.joints.size()), std::vector<float>(poses.confidence.size()),
           std::vector<std::uint8_t>(poses.confidence.size()),
           std::vector<float>(model->variance() ? poses.confidence.size() : 0)};
  port::Refiner(model).refine(
      poses.joints.data(), poses.confidence.data(), poses.batch, 0.3f,
      {a.joints.data(), a.confidence.data(), a.mask.data(), model->variance() ? a.std.data() : nullptr});
  return a;
}

std::shared_ptr<const port::Model> bundled(const char* name) {
  return port::Model::load(std::string(PORT_MODELS) + "/" + name + ".safetensors");
}

std::shared_ptr<const port::Model> with_variance() {
  return port_test::random_model("", R"({"width": 64, "layers": 3, "heads": 4, "head_dim": 16, "input_channels": 3,)"
                                     R"( "residual": true, "mask_embedding": false, "variance": true})");
}

}  // namespace

TEST(every_way_and_batch) {
  unsigned seed = 1;
  for (const char* name : {"hand21", "hand21-paper", "mpii16", "coco17", "h36m17", "variance"}) {
    const auto model = name == std::string("variance") ? with_variance() : bundled(name);
    std::vector<std::unique_ptr<port::CudaRefiner>> refiners;
    for (const Way& way : ways()) refiners.push_back(make(model, way));
    for (const std::int64_t batch : {0, 1, 2, 3, 33, 34, 131, 132, 133, 265, 529, 1025}) {
      const Poses poses = make_poses(batch, model->joints(), seed++);
      const Answer want = on_processor(model, poses);
      std::unique_ptr<Answer> half;
      for (std::size_t i = 0; i < refiners.size(); ++i) {
        if (!refiners[i]) continue;
        const Way way = ways()[i];
        const Answer got = on_gpu(*refiners[i], poses), again = on_gpu(*refiners[i], poses);
        const std::string label = std::string(name) + " " + name_of(way) + " of " + std::to_string(batch);
        const double error = largest_error(got, want);
        CHECK_CASE(error <= allowed(way.precision), label + ": " + std::to_string(error) + " px");
        CHECK_CASE(got.mask == want.mask, label);
        CHECK_CASE(largest_std_error(got, want) <= allowed_std(way.precision), label + " std");
        CHECK_CASE(same(got, again), label + ": other bits the second time");
        if (way.precision != Precision::kFloat16) continue;
        if (half) CHECK_CASE(same(got, *half), label + ": other bits than another variant");
        half = std::make_unique<Answer>(got);
      }
    }
  }
}

TEST(from_heatmaps_of_every_type) {
  const auto model = bundled("hand21");
  const int n = model->joints();
  std::mt19937 random(5);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  for (const auto& [height, width] : {std::pair<int, int>{64, 64}, {46, 46}, {64, 48}}) {
    const std::int64_t batch = 5, count = batch * n;
    std::vector<float> maps;
    for (std::int64_t i = 0; i < count; ++i) {
      const float x0 = unit(random) * 40.0f, y0 = unit(random) * 40.0f, peak = unit(random);
      for (int p = 0; p < height * width; ++p) {
        const float dx = static_cast<float>(p % width) - x0, dy = static_cast<float>(p / width) - y0;
        maps.push_back(peak * std::exp(-(dx * dx + dy * dy) / 8.0f));
      }
    }
    std::vector<std::uint16_t> half;  // bfloat16 by cutting off
    for (float& v : maps) {
      std::uint32_t bits;
      std::memcpy(&bits, &v, 4);
      half.push_back(static_cast<std::uint16_t>(bits >> 16));
      bits &= 0xffff0000u;
      std::memcpy(&v, &bits, 4);
    }
    const DeviceArray<float> device_maps(maps);
    const DeviceArray<std::uint16_t> device_half(half);
    Answer want{std::vector<float>(static_cast<std::size_t>(2 * count)),
                std::vector<float>(static_cast<std::size_t>(count)),
                std::vector<std::uint8_t>(static_cast<std::size_t>(count)),
                {}};
    const port::Output to{want.joints.data(), want.confidence.data(), want.mask.data()};
    const auto host = port::HeatmapView::dense(maps.data(), port::DType::kFloat32, batch, n, height, width);
    for (const bool line : {false, true}) {
      if (line) {
        port::Refiner(model).run(host, nullptr, 0.3f, to);
      } else {
        port::decode(host, model->codec(), model->temperature(), 0.3f, to);
      }
      for (const bool narrow : {false, true}) {
        auto view = host;
        view.data = narrow ? static_cast<const void*>(device_half.data()) : device_maps.data();
        view.dtype = narrow ? port::DType::kBfloat16 : port::DType::kFloat32;
        const DeviceArray<float> joints(want.joints.size()), confidence(want.confidence.size());
        const DeviceArray<std::uint8_t> mask(want.mask.size());
        const port::Output out{joints.data(), confidence.data(), mask.data()};
        if (line) {
          make(model, {Precision::kFloat16, {}})->run(view, nullptr, 0.3f, out, nullptr);
        } else {
          port::cuda_decode(view, model->codec(), model->temperature(), 0.3f, out, 0, nullptr);
        }
        const Answer got{joints.get(), confidence.get(), mask.get(), {}};
        CHECK(largest_error(got, want) < (line ? 0.2 : 5e-4) && got.mask == want.mask);
        CHECK(got.confidence == want.confidence);
      }
    }
  }
}

// Captured once, replayed on new data; between other work of the stream.
TEST(captured_in_a_graph) {
  const auto model = bundled("hand21");
  const auto refiner = make(model, {Precision::kFloat16, {}});
  cudaStream_t stream;
  must(cudaStreamCreate(&stream), "stream");
  for (const std::int64_t batch : {std::int64_t{1}, std::int64_t{64}, std::int64_t{1024}}) {
    const Poses first = make_poses(batch, model->joints(), 11), second = make_poses(batch, model->joints(), 12);
    DeviceArray<float> joints(first.joints), confidence(first.confidence);
    const DeviceArray<float> refined(first.joints.size());
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    refiner->refine(joints.data(), confidence.data(), batch, 0.3f, {refined.data(), nullptr, nullptr}, stream);
    must(cudaStreamEndCapture(stream, &graph), "end of capture");
    must(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
    for (const Poses* poses : {&first, &second, &first}) {
      joints.put(poses->joints);
      confidence.put(poses->confidence);
      must(cudaGraphLaunch(replay, stream), "replay");
      const Answer want = on_gpu(*refiner, *poses);
      const std::vector<float> got = refined.get();
      CHECK(std::memcmp(got.data(), want.joints.data(), got.size() * sizeof(float)) == 0);
    }
    must(cudaGraphExecDestroy(replay), "destroy");
    must(cudaGraphDestroy(graph), "destroy");
  }
  must(cudaStreamDestroy(stream), "destroy");
}

TEST(one_refiner_many_threads_and_streams) {
  const auto model = bundled("hand21");
  const auto refiner = make(model, {Precision::kFloat16, {}});
  std::vector<std::thread> threads;
  std::vector<int> wrong(8, 0);
  for (unsigned t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      cudaStream_t stream;
      must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
      const Poses poses = make_poses(3 + 40 * static_cast<std::int64_t>(t), model->joints(), 100 + t);
      const Answer want = on_gpu(*refiner, poses);
      for (int i = 0; i < 20; ++i) wrong[t] += !same(on_gpu(*refiner, poses, stream), want);
      must(cudaStreamDestroy(stream), "destroy");
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : wrong) CHECK(count == 0);
}

// A refused call says so and leaves nothing behind; the caller's device stays current.
TEST(errors) {
  const auto model = port_test::random_model();
  port::CudaOptions options;
  options.device = 1000;
  CHECK_ERROR(port::ErrorCode::kUnavailable, "expected a CUDA device from 0", port::CudaRefiner(model, options));
  CHECK(cudaGetLastError() == cudaSuccess);
  const port::CudaRefiner refiner(model);
  CHECK_ERROR(port::ErrorCode::kInput, "null pointer", refiner.refine(nullptr, nullptr, 1, 0.3f, {}, nullptr));
  CHECK_ERROR(port::ErrorCode::kInput, "threshold", refiner.refine(nullptr, nullptr, 0, NAN, {}, nullptr));
  int device = -1;
  CHECK(cudaGetDevice(&device) == cudaSuccess && device == 0);
}

int main() { return port_test::run_gpu_tests(); }
