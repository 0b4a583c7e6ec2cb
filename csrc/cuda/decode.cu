// SPDX-License-Identifier: Apache-2.0
// port::cuda_decode: the fused decode alone.
#include "arguments.h"
#include "check.h"
#include "checks.h"
#include "kernels/decode_kernel.h"
#include "launch.h"
#include "port/cuda.hpp"

namespace port {
namespace {

// Up to here every map has a block: more warps read at the same time. Predicted, not measured: benchmarks/KERNELS.md.
constexpr std::int64_t kBlockPerMapUpTo = 4096;
constexpr std::int64_t kMostBlocks = 0x7fffffff;

}  // namespace

void cuda_decode(const HeatmapView& heatmaps, Codec codec, float temperature, float threshold, const Output& out,
                 int device, CudaStream stream) {
  check_view(heatmaps);
  check_positive("temperature", temperature);
  check_threshold(threshold);
  if (heatmaps.batch == 0) return;
  if (out.joints == nullptr) input_error("expected memory for joints [B, N, 2], got a null pointer");
  const DeviceGuard guard(device);
  int major = 0;
  PORT_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  using namespace kernels;
  const std::int64_t count = heatmaps.batch * heatmaps.joints;
  const DecodeParams params{maps_of(heatmaps, codec, temperature), results_of(out), count, heatmaps.joints, threshold};
  const bool block_per_map = count <= kBlockPerMapUpTo;
  const std::int64_t blocks = block_per_map ? count : (count + kQuarters - 1) / kQuarters;
  if (blocks > kMostBlocks) input_error("expected at most 2^33 maps in a call, got " + std::to_string(count));
  Launch what;
  what.kernel = block_per_map ? reinterpret_cast<const void*>(&decode_kernel<true>)
                              : reinterpret_cast<const void*>(&decode_kernel<false>);
  what.blocks = static_cast<unsigned>(blocks);
  what.threads = kDecodeThreads;
  what.shared_bytes = sizeof(Part) * kQuarters * (block_per_map ? 1 : kQuarters);
  what.overlap = major >= 9;
  launch(what, &params, stream);
}

}  // namespace port
