// SPDX-License-Identifier: Apache-2.0
// port/cuda.hpp where there is no GPU: every call says what is missing and what to do, and a processor says of GPU
// types that they are a GPU's.
#include <cmath>
#include <vector>

#include "model_file.h"
#include "port/cuda.hpp"
#include "testing.h"

using port::ErrorCode;

TEST(names) {
  for (const char* name : {"block", "cluster", "throughput"}) {
    CHECK(std::string(port::to_string(port::cuda_variant_from_string(name))) == name);
  }
  CHECK_ERROR(ErrorCode::kInput, "block, cluster, throughput", port::cuda_variant_from_string("fast"));
}

TEST(without_a_gpu) {
  CHECK_ERROR(ErrorCode::kInput, "expected a model", port::CudaRefiner(nullptr));
  if (!port::cuda_info().devices.empty()) return;
  const auto model = port_test::random_model();
  CHECK_ERROR(ErrorCode::kUnavailable, "port::Refiner", port::CudaRefiner(model));
  const std::vector<float> map(12, 0.0f);
  const auto view = port::HeatmapView::dense(map.data(), port::DType::kFloat32, 1, 1, 3, 4);
  float joints[2];
  const port::Output out{joints, nullptr, nullptr};
  CHECK_ERROR(ErrorCode::kUnavailable, "use the processor",
              port::cuda_decode(view, port::Codec::kArgmax, 40.0f, 0.3f, out, 0, {}));
  CHECK_ERROR(ErrorCode::kUnavailable, "use the processor",
              port::cuda_decode_peaks(view, port::PeakCodec::kDark, 11, 0.3f, out, 0, {}));
  const auto vector = port::HeatmapView::dense(map.data(), port::DType::kFloat32, 1, 1, 1, 12);
  CHECK_ERROR(ErrorCode::kUnavailable, "use the processor",
              port::cuda_decode_simcc(vector, vector, 2.0f, port::SimccScore::kMin, 0.3f, out, 0, {}));
}

TEST(decode_checks_its_arguments_first) {
  const std::vector<float> map(12, 0.0f);
  auto view = port::HeatmapView::dense(map.data(), port::DType::kFloat32, 1, 1, 3, 4);
  const auto decode = [&](float temperature, float threshold) {
    port::cuda_decode(view, port::Codec::kArgmax, temperature, threshold, {}, 0, nullptr);
  };
  CHECK_ERROR(ErrorCode::kInput, "temperature", decode(0.0f, 0.3f));
  CHECK_ERROR(ErrorCode::kInput, "threshold", decode(40.0f, -1.0f));
  view.width = 0;
  CHECK_ERROR(ErrorCode::kInput, "H, W from 1", decode(40.0f, 0.3f));
}

TEST(the_other_codecs_do_too) {
  const std::vector<float> map(12, 0.0f);
  const auto view = port::HeatmapView::dense(map.data(), port::DType::kFloat32, 1, 1, 3, 4);
  const auto vector = port::HeatmapView::dense(map.data(), port::DType::kFloat32, 1, 1, 1, 12);
  const auto peaks = [&](const port::HeatmapView& maps, int blur, float threshold) {
    port::cuda_decode_peaks(maps, port::PeakCodec::kDark, blur, threshold, {}, 0, nullptr);
  };
  for (const int blur : {-1, 0, 7, 10, 65})
    CHECK_ERROR(ErrorCode::kInput, "odd blur from 9 to 63", peaks(view, blur, 0.3f));
  CHECK_ERROR(ErrorCode::kInput, "threshold", peaks(view, 11, -1.0f));
  auto wide = view;
  wide.width = 5000;
  CHECK_ERROR(ErrorCode::kInput, "H, W from 1", peaks(wide, 11, 0.3f));
  const auto simcc = [&](const port::HeatmapView& x, const port::HeatmapView& y, float ratio, float threshold) {
    port::cuda_decode_simcc(x, y, ratio, port::SimccScore::kMean, threshold, {}, 0, nullptr);
  };
  CHECK_ERROR(ErrorCode::kInput, "maps of one row", simcc(vector, view, 2.0f, 0.3f));
  CHECK_ERROR(ErrorCode::kInput, "split_ratio", simcc(vector, vector, 0.0f, 0.3f));
  CHECK_ERROR(ErrorCode::kInput, "threshold", simcc(vector, vector, 2.0f, NAN));
  auto other = vector;
  other.joints = 2;
  CHECK_ERROR(ErrorCode::kInput, "same poses and joints", simcc(vector, other, 2.0f, 0.3f));
}

TEST(what_only_a_gpu_does) {
  const std::vector<std::uint16_t> map(12, 0);
  const auto view = port::HeatmapView::dense(map.data(), port::DType::kBfloat16, 1, 1, 3, 4);
  std::vector<float> joints(2);
  const port::Output out{joints.data(), nullptr, nullptr};
  CHECK_ERROR(ErrorCode::kInput, "bfloat16", port::decode(view, port::Codec::kArgmax, 40.0f, 0.3f, out));
  port::Options options;
  options.precision = port::Precision::kFloat16;
  CHECK_ERROR(ErrorCode::kUnavailable, "fp16 needs a GPU", port::Refiner(port_test::random_model(), options));
  CHECK_ERROR(ErrorCode::kUnavailable, "fp16", port::measure_peak_flops(port::Precision::kFloat16, 0.01));
}

int main() { return port_test::run_tests(); }
