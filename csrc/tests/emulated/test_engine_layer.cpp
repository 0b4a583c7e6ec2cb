// SPDX-License-Identifier: Apache-2.0
// The line as a layer of an engine, on the emulated GPU: the entry points that the PTX has, launched as
// port/engine_layer.hpp says, with nothing but what make_engine_layer() answers, against PORT in double and against
// the kernel that CudaRefiner launches.
#include <device/intrinsics.h>

#include <algorithm>
#include <cstdio>

#include "kernels/engine_layer.h"
#include "oracle.h"
#include "port/engine_layer.hpp"
#include "testing.h"

PORT_ENGINE_LAYER(plain_2, port::kernels::Plain, 2)
PORT_ENGINE_LAYER(plain_3, port::kernels::Plain, 3)
PORT_ENGINE_LAYER(plain_4, port::kernels::Plain, 4)
PORT_ENGINE_LAYER(half_2, port::device::Half, 2)
PORT_ENGINE_LAYER(half_3, port::device::Half, 3)
PORT_ENGINE_LAYER(half_4, port::device::Half, 4)
PORT_ENGINE_LAYER(bfloat_2, port::device::Bfloat, 2)
PORT_ENGINE_LAYER(bfloat_3, port::device::Bfloat, 3)
PORT_ENGINE_LAYER(bfloat_4, port::device::Bfloat, 4)

namespace {

using namespace port_test;
using port::Precision;

using Kernel = decltype(&plain_2);
struct Entry {
  Precision precision;
  int columns;
  Kernel kernel;
  port::kernels::EngineConstants* constants;
};
const Entry kEntries[] = {
    {Precision::kFloat32, 2, &plain_2, &plain_2_constants},
    {Precision::kFloat32, 3, &plain_3, &plain_3_constants},
    {Precision::kFloat32, 4, &plain_4, &plain_4_constants},
    {Precision::kFloat16, 2, &half_2, &half_2_constants},
    {Precision::kFloat16, 3, &half_3, &half_3_constants},
    {Precision::kFloat16, 4, &half_4, &half_4_constants},
    {Precision::kBfloat16, 2, &bfloat_2, &bfloat_2_constants},
    {Precision::kBfloat16, 3, &bfloat_3, &bfloat_3_constants},
    {Precision::kBfloat16, 4, &bfloat_4, &bfloat_4_constants},
};

// Memory as an engine has it: on 256 bytes, of exactly that size.
template <typename T>
class Tensor {
 public:
  explicit Tensor(std::size_t count) : count_(count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, std::max<std::size_t>(count * sizeof(T), 1)) != 0) std::abort();
    std::memset(memory, 0xff, count * sizeof(T));
    data_.reset(static_cast<T*>(memory));
  }
  template <typename From>
  explicit Tensor(const std::vector<From>& from) : Tensor(from.size() * sizeof(From) / sizeof(T)) {
    std::memcpy(data_.get(), from.data(), count_ * sizeof(T));
  }
  T* data() const { return data_.get(); }

 private:
  std::size_t count_;
  std::unique_ptr<T, void (*)(void*)> data_{nullptr, &std::free};
};

// What TensorRT does with a layer.
Answer launch(const port::EngineLayer& layer, Precision precision, const std::vector<float>& first,
              const std::vector<float>& second, std::int64_t batch, int joints, float threshold, unsigned seed = 0) {
  // PTX of a model without a variance gets null for the last argument.
  const Entry* entry = std::find_if(std::begin(kEntries), std::end(kEntries), [&](const Entry& e) {
    return e.precision == precision && e.columns == layer.columns;
  });
  std::memcpy(static_cast<void*>(entry->constants), layer.constants.data(), layer.constants.size());
  const auto rows = static_cast<std::size_t>(batch * joints);
  const Tensor<float> in_first(first), in_second(second), in_threshold(std::vector<float>{threshold});
  const Tensor<unsigned char> weights(layer.weights);
  const Tensor<float> out_joints(2 * rows), out_confidence(rows), out_std(layer.std ? rows : 0);
  const Tensor<std::int32_t> out_state(static_cast<std::size_t>(batch) * static_cast<std::size_t>(layer.state_words));
  port::emulated::Launch grid;
  grid.blocks = static_cast<int>(batch);
  grid.threads = layer.threads;
  grid.shared_bytes = layer.shared_bytes;
  grid.seed = seed;
  port::emulated::launch(grid, [&] {
    entry->kernel(in_first.data(), in_second.data(), in_threshold.data(), weights.data(),
                  static_cast<std::int32_t>(batch), out_joints.data(), out_confidence.data(), out_state.data(),
                  layer.std ? out_std.data() : nullptr);
  });
  Answer answer(rows, layer.std);
  std::copy_n(out_std.data(), answer.std.size(), answer.std.begin());
  std::copy_n(out_joints.data(), 2 * rows, answer.joints.begin());
  std::copy_n(out_confidence.data(), rows, answer.confidence.begin());
  for (std::size_t i = 0; i < rows; ++i) {
    const auto n = static_cast<std::size_t>(joints), words = static_cast<std::size_t>(layer.state_words);
    const std::int32_t word = out_state.data()[i / n * words + i % n];
    CHECK(word == 0 || word == 1);
    answer.mask[i] = static_cast<std::uint8_t>(word);
  }
  return answer;
}

constexpr Precision kPrecisions[] = {Precision::kFloat32, Precision::kFloat16, Precision::kBfloat16};

void check_joints(const std::shared_ptr<const port::Model>& model, const Poses& poses, const std::string& name) {
  static unsigned seed = 0;
  const Answer want = oracle(*model, poses, 0.3f);
  for (const Precision precision : kPrecisions) {
    const port::EngineLayer layer = port::make_engine_layer(*model, {precision, 0, 0});
    CHECK(layer.shared_bytes <= port::kEngineLayerSharedBytes);
    const Answer got =
        launch(layer, precision, poses.joints, poses.confidence, poses.batch, model->joints(), 0.3f, seed++ % 5);
    const Answer rounded = oracle(*model, poses, 0.3f, [&](double x) { return round_to(precision, x); });
    const Distance d = distance(got, want), allowed = distance(rounded, want);
    const std::string label = name + " " + port::to_string(precision) + ": " + std::to_string(d.root_mean_square) +
                              " px rms, rounding " + std::to_string(allowed.root_mean_square) + ", shared " +
                              std::to_string(layer.shared_bytes) + ", state " + std::to_string(layer.state_words);
    if (std::getenv("PORT_TEST_VERBOSE")) std::printf("%s\n", label.c_str());
    const double floor = precision == Precision::kFloat32 ? 5e-4 : precision == Precision::kFloat16 ? 2e-3 : 1.6e-2;
    CHECK_CASE(d.root_mean_square <= 2.0 * allowed.root_mean_square + floor, label);
    CHECK_CASE(got.mask == want.mask && same_bits(got.confidence, want.confidence), label);
    const double std_error = std_distance(got, want).root_mean_square;
    const double std_allowed = 2.0 * std_distance(rounded, want).root_mean_square + std_floor(precision);
    CHECK_CASE(got.std.size() == want.std.size() && std_error <= std_allowed,
               label + ", std " + std::to_string(std_error));
    const DeviceModel device(*model, precision);
    Run run;
    run.precision = precision;
    CHECK_CASE(got == refine(device, poses, run), label + " has other bits than CudaRefiner's kernel");
  }
}

void check_heatmaps(const std::shared_ptr<const port::Model>& model) {
  const int n = model->joints(), height = 12, width = 16;
  const std::int64_t batch = 3;
  std::mt19937 random(4);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  std::vector<float> maps, affine;
  for (std::int64_t i = 0; i < batch * n * height * width; ++i) maps.push_back(0.1f * unit(random));
  for (std::int64_t i = 0; i < batch * n; ++i) {
    const auto at = static_cast<std::size_t>(i * height * width + static_cast<int>(unit(random) * 190.0f));
    maps[at] = i / n == 2 ? 0.0f : unit(random);  // the last pose has nothing that is seen: it stays as it is
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    for (const float v : {4.0f, 0.0f, 30.0f, 0.0f, 4.0f, 50.0f}) affine.push_back(v + static_cast<float>(b));
  }
  for (const Precision precision : kPrecisions) {
    const port::EngineLayer layer = port::make_engine_layer(*model, {precision, height, width});
    const Answer got = launch(layer, precision, maps, affine, batch, n, 0.35f);
    const DeviceModel device(*model, precision);
    Answer want(static_cast<std::size_t>(batch * n), device.variance);
    port::kernels::LineParams params{};
    params.net = device.network;
    params.rules = device.rules;
    params.maps = port::maps_of(port::HeatmapView::dense(maps.data(), port::DType::kFloat32, batch, n, height, width),
                                model->codec(), model->temperature());
    params.affine = affine.data();
    params.out = port::results_of(want.output());
    params.batch = batch;
    params.threshold = 0.35f;
    Run run;
    run.precision = precision;
    launch_line(params, run);
    CHECK_CASE(got == want, port::to_string(precision));
    CHECK(std::count(got.mask.begin(), got.mask.end(), 1) > 0);
    CHECK(std::count(got.mask.begin(), got.mask.end(), 0) > 0);
  }
}

}  // namespace

TEST(bundled_models) {
  for (const char* name : {"hand21", "hand21-paper", "mpii16", "coco17", "h36m17"}) {
    const auto model = port::Model::load(std::string(PORT_MODELS) + "/" + name + ".safetensors");
    Poses poses = make_poses(2, model->joints(), 3);
    std::fill(poses.confidence.begin() + model->joints(), poses.confidence.end(), 0.9f);  // nothing to do
    poses.joints[5] = NAN;
    check_joints(model, poses, name);
  }
}

TEST(numbers_of_joints) {
  for (const int n : {9, 17, 25, 32}) {
    std::string names, bones;
    for (int i = 0; i < n; ++i) names += (i ? ", \"j" : "\"j") + std::to_string(i) + "\"";
    for (int i = 1; i < n; ++i) bones += (i > 1 ? ", [" : "[") + std::to_string(i - 1) + ", " + std::to_string(i) + "]";
    const auto model = load(model_file(specification(R"("min_visible": 2)",
                                                     R"({"width": 32, "layers": 2, "heads": 4, "head_dim": 16,)"
                                                     R"( "input_channels": 3, "residual": true,)"
                                                     R"( "mask_embedding": false})",
                                                     R"({"name": "chain", "names": [)" + names + R"(], "bones": [)" +
                                                         bones + R"(], "root": 0, "axis": 1})"),
                                       static_cast<unsigned>(n))
                                .bytes());
    check_joints(model, make_poses(1, n, static_cast<unsigned>(n)), std::to_string(n) + " joints");
  }
}

TEST(variance) {
  for (const char* rules : {R"("min_visible": 2)", R"("refine": "all", "frame": "paper", "frame_size": [640, 480])"}) {
    const auto model = random_model(rules, R"({"width": 32, "layers": 2, "heads": 4, "head_dim": 16, "variance": true,)"
                                           R"( "input_channels": 3})");
    CHECK(port::make_engine_layer(*model, {}).std);
    check_joints(model, make_poses(3, model->joints(), 8), rules);
  }
}

TEST(heatmaps_with_affine) {
  for (const auto& model : {port::Model::load(std::string(PORT_MODELS) + "/hand21.safetensors"),
                            random_model("", R"({"width": 16, "layers": 1, "heads": 2, "variance": true})")}) {
    check_heatmaps(model);
  }
}

TEST(what_it_refuses) {
  const auto model = port::Model::load(std::string(PORT_MODELS) + "/hand21.safetensors");
  CHECK_ERROR(port::ErrorCode::kInput, "H, W from 1", port::make_engine_layer(*model, {Precision::kFloat32, 64, 0}));
  const auto wide =
      load(model_file(specification("", R"({"width": 256, "layers": 1, "heads": 4, "head_dim": 64})")).bytes());
  CHECK_ERROR(port::ErrorCode::kUnavailable, "48 KB", port::make_engine_layer(*wide, {}));
}

TEST(equal_models_make_equal_bytes) {
  const auto model = port::Model::load(std::string(PORT_MODELS) + "/mpii16.safetensors");
  const port::EngineLayer a = port::make_engine_layer(*model, {Precision::kFloat16, 64, 48});
  const port::EngineLayer b = port::make_engine_layer(*model, {Precision::kFloat16, 64, 48});
  CHECK(a.constants == b.constants && a.weights == b.weights);
  CHECK(a.constants != port::make_engine_layer(*model, {Precision::kFloat16, 64, 64}).constants);
}

int main() { return port_test::run_tests(); }
