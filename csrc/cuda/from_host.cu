// SPDX-License-Identifier: Apache-2.0
// port::CudaFromHost: what stands around a CudaRefiner for arrays in host memory. Memory comes from a pool of its own
// that keeps what it has, in the order of a stream of the calling thread, so that a call costs copies and no
// allocation. Test: csrc/tests/gpu/, tests/test_cuda.py (on a GPU); csrc/tests/test_cuda_api.cpp (what works without).
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "checks.h"
#include "port/cuda.hpp"

namespace port {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick would surface in the next caller's check
  throw Error(ErrorCode::kUnavailable, std::string(what) + ": " + cudaGetErrorString(status) + " (CUDA error " +
                                           std::to_string(static_cast<int>(status)) + ")");
}

// Makes a device current, and the one before it again at the end.
class Current {
 public:
  explicit Current(int device) {
    check(cudaGetDevice(&before_), "cannot ask for the current GPU");
    if (device != before_) check(cudaSetDevice(device), "cannot use the GPU");
  }
  ~Current() { cudaSetDevice(before_); }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int before_ = 0;
};

// The calling thread's own stream, on every device: nothing to create, nobody else waits.
const cudaStream_t kStream = cudaStreamPerThread;

// Device memory for one call, given back to the pool in stream order.
class Piece {
 public:
  Piece(cudaMemPool_t pool, std::size_t bytes) {
    if (bytes > 0) check(cudaMallocFromPoolAsync(&data_, bytes, pool, kStream), "no memory on the GPU");
  }
  ~Piece() {
    if (data_) cudaFreeAsync(data_, kStream);
  }
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

void upload(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, kStream), "cannot copy to the GPU");
}

void download(void* to, const void* from, std::size_t bytes) {
  if (to && bytes > 0) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, kStream), "cannot copy from the GPU");
  }
}

}  // namespace

struct CudaFromHost::Impl {
  explicit Impl(const CudaRefiner& r) : refiner(r), joints(static_cast<std::size_t>(r.model().joints())) {
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = refiner.device();
    check(cudaMemPoolCreate(&pool, &properties), "no memory pool on the GPU, which host arrays need");
    std::uint64_t keep = UINT64_MAX;
    cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep);
  }
  ~Impl() { cudaMemPoolDestroy(pool); }

  // `compute` queues the work into the device's copy of the outputs.
  template <typename Compute>
  void call(std::int64_t batch, const Output& out, const Compute& compute) const {
    const std::size_t rows = static_cast<std::size_t>(batch) * joints;
    const Piece points(pool, rows * 2 * sizeof(float)), scores(pool, rows * sizeof(float)), mask(pool, rows);
    const Piece std(pool, out.std ? rows * sizeof(float) : 0);
    compute(Output{points.as<float>(), scores.as<float>(), mask.as<std::uint8_t>(), std.as<float>()});
    download(out.joints, points.as<float>(), rows * 2 * sizeof(float));
    download(out.confidence, scores.as<float>(), rows * sizeof(float));
    download(out.mask, mask.as<std::uint8_t>(), rows);
    download(out.std, std.as<float>(), rows * sizeof(float));
    check(cudaStreamSynchronize(kStream), "the refinement failed on the GPU");
  }

  const CudaRefiner& refiner;
  const std::size_t joints;
  cudaMemPool_t pool = nullptr;
};

CudaFromHost::CudaFromHost(const CudaRefiner& refiner) {
  const Current current(refiner.device());
  impl_ = std::make_unique<Impl>(refiner);
}
CudaFromHost::~CudaFromHost() = default;

void CudaFromHost::refine(const float* joints, const float* confidence, std::int64_t batch, float threshold,
                          const Output& out) const {
  check_threshold(threshold);
  check_batch(batch);
  if (batch == 0) return;
  if (!joints || !confidence) input_error("expected joints [B, N, 2] and confidence [B, N], got a null pointer");
  if (!out.joints) input_error("expected memory for joints [B, N, 2], got a null pointer");
  check_std(out, impl_->refiner.model());
  const Current current(impl_->refiner.device());
  const std::size_t rows = static_cast<std::size_t>(batch) * impl_->joints;
  const Piece points(impl_->pool, rows * 2 * sizeof(float)), scores(impl_->pool, rows * sizeof(float));
  upload(points.as<float>(), joints, rows * 2 * sizeof(float));
  upload(scores.as<float>(), confidence, rows * sizeof(float));
  impl_->call(batch, out, [&](const Output& there) {
    impl_->refiner.refine(points.as<float>(), scores.as<float>(), batch, threshold, there, kStream);
  });
}

void CudaFromHost::run(const HeatmapView& heatmaps, const float* affine, float threshold, const Output& out) const {
  check_threshold(threshold);
  check_view(heatmaps);
  if (heatmaps.batch == 0) return;
  if (!out.joints) input_error("expected memory for joints [B, N, 2], got a null pointer");
  check_std(out, impl_->refiner.model());
  HeatmapView view =
      HeatmapView::dense(nullptr, heatmaps.dtype, heatmaps.batch, heatmaps.joints, heatmaps.height, heatmaps.width);
  if (view.stride_b != heatmaps.stride_b || view.stride_n != heatmaps.stride_n || view.stride_h != heatmaps.stride_h) {
    input_error("expected dense heatmaps, got other strides: copy them together first");
  }
  const Current current(impl_->refiner.device());
  const std::size_t size = heatmaps.dtype == DType::kFloat32 ? 4 : 2;
  const std::size_t bytes = static_cast<std::size_t>(view.batch * view.stride_b) * size;
  const std::size_t turn = affine ? static_cast<std::size_t>(view.batch) * 6 * sizeof(float) : 0;
  const Piece maps(impl_->pool, bytes), matrix(impl_->pool, turn);
  upload(maps.as<void>(), heatmaps.data, bytes);
  upload(matrix.as<void>(), affine, turn);
  view.data = maps.as<void>();
  impl_->call(view.batch, out,
              [&](const Output& there) { impl_->refiner.run(view, matrix.as<float>(), threshold, there, kStream); });
}

}  // namespace port
