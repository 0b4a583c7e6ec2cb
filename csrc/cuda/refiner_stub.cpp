// SPDX-License-Identifier: Apache-2.0
// What takes the place of the CUDA path in a build without CUDA: everything checks its arguments as there, then says
// what to do. Test: csrc/tests/test_cuda_api.cpp.
#include "checks.h"
#include "port/cuda.hpp"

namespace port {
namespace {

[[noreturn]] void unavailable() {
  throw Error(ErrorCode::kUnavailable,
              "built without CUDA: install the CUDA toolkit (nvcc) and build again with PORT_CUDA=ON, or use the "
              "processor (port::Refiner)");
}

}  // namespace

struct CudaRefiner::Impl {};

CudaRefiner::CudaRefiner(std::shared_ptr<const Model> model, const CudaOptions&) {
  if (!model) input_error("expected a model, got null: use port::Model::load");
  unavailable();
}
CudaRefiner::~CudaRefiner() = default;
CudaRefiner::CudaRefiner(CudaRefiner&&) noexcept = default;
CudaRefiner& CudaRefiner::operator=(CudaRefiner&&) noexcept = default;

// No object exists, so nothing below is reached.
void CudaRefiner::refine(const float*, const float*, std::int64_t, float, const Output&, CudaStream) const {
  unavailable();
}
void CudaRefiner::run(const HeatmapView&, const float*, float, const Output&, CudaStream) const { unavailable(); }
void CudaRefiner::refine(const float*, const float*, std::int64_t, const CudaLayerOutput&, CudaStream) const {
  unavailable();
}
void CudaRefiner::run(const HeatmapView&, const float*, const CudaLayerOutput&, CudaStream) const { unavailable(); }
const Model& CudaRefiner::model() const { unavailable(); }
int CudaRefiner::device() const { unavailable(); }
Precision CudaRefiner::precision() const { unavailable(); }
CudaVariant CudaRefiner::variant(std::int64_t) const { unavailable(); }
std::size_t CudaRefiner::weight_bytes() const { unavailable(); }
std::string CudaRefiner::description() const { unavailable(); }

void cuda_decode(const HeatmapView& heatmaps, Codec, float temperature, float threshold, const Output&, int,
                 CudaStream) {
  check_view(heatmaps);
  check_positive("temperature", temperature);
  check_threshold(threshold);
  unavailable();
}

void cuda_decode_peaks(const HeatmapView& heatmaps, PeakCodec, int blur, float threshold, const Output&, int,
                       CudaStream) {
  check_view(heatmaps);
  check_blur(blur);
  check_threshold(threshold);
  unavailable();
}

void cuda_decode_simcc(const HeatmapView& x, const HeatmapView& y, float split_ratio, SimccScore, float threshold,
                       const Output&, int, CudaStream) {
  check_view(x);
  check_view(y);
  check_simcc(x, y);
  check_positive("split_ratio", split_ratio);
  check_threshold(threshold);
  unavailable();
}

}  // namespace port
