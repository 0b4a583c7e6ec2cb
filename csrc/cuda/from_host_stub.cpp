// SPDX-License-Identifier: Apache-2.0
// port::CudaFromHost in a build without CUDA, where no CudaRefiner can exist for it. Test:
// csrc/tests/test_cuda_api.cpp.
#include "port/cuda.hpp"

namespace port {
namespace {

[[noreturn]] void unavailable() {
  throw Error(ErrorCode::kUnavailable, "built without CUDA: build again with PORT_CUDA=ON, or use port::Refiner");
}

}  // namespace

struct CudaFromHost::Impl {};
CudaFromHost::CudaFromHost(const CudaRefiner&) { unavailable(); }
CudaFromHost::~CudaFromHost() = default;
void CudaFromHost::refine(const float*, const float*, std::int64_t, float, const Output&) const { unavailable(); }
void CudaFromHost::run(const HeatmapView&, const float*, float, const Output&) const { unavailable(); }

}  // namespace port
