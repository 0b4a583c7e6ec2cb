// SPDX-License-Identifier: Apache-2.0
// port::cuda_decode, cuda_decode_peaks and cuda_decode_simcc: the fused decodes alone.
#include "arguments.h"
#include "check.h"
#include "checks.h"
#include "kernels/simcc_kernel.h"
#include "launch.h"
#include "port/cuda.hpp"

namespace port {
namespace {

using namespace kernels;

// Up to here every map has a block: more warps read at the same time. Predicted, not measured: benchmarks/KERNELS.md.
constexpr std::int64_t kBlockPerMapUpTo = 4096;
constexpr std::int64_t kMostBlocks = 0x7fffffff;

bool is_block_per_map(const HeatmapView& view) { return view.batch * view.joints <= kBlockPerMapUpTo; }

void check_output(const Output& out) {
  if (out.joints == nullptr) input_error("expected memory for joints [B, N, 2], got a null pointer");
}

// Queues kernel(params) for params.count maps: a block for each, or for four of them.
template <typename Params>
void queue(void (*kernel)(Params), const Params& params, bool block_per_map, std::size_t shared_bytes, int device,
           CudaStream stream) {
  const DeviceGuard guard(device);
  int major = 0;
  PORT_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  const std::int64_t blocks = block_per_map ? params.count : (params.count + kQuarters - 1) / kQuarters;
  if (blocks > kMostBlocks) input_error("expected at most 2^33 maps in a call, got " + std::to_string(params.count));
  Launch what;
  what.kernel = reinterpret_cast<const void*>(kernel);
  what.blocks = static_cast<unsigned>(blocks);
  what.threads = kDecodeThreads;
  what.shared_bytes = shared_bytes;
  what.overlap = major >= 9;
  launch(what, &params, stream);
}

}  // namespace

void cuda_decode(const HeatmapView& heatmaps, Codec codec, float temperature, float threshold, const Output& out,
                 int device, CudaStream stream) {
  check_view(heatmaps);
  check_positive("temperature", temperature);
  check_threshold(threshold);
  if (heatmaps.batch == 0) return;
  check_output(out);
  const bool block_per_map = is_block_per_map(heatmaps);
  const DecodeParams params{maps_of(heatmaps, codec, temperature), results_of(out), heatmaps.batch * heatmaps.joints,
                            heatmaps.joints, threshold};
  queue(block_per_map ? &decode_kernel<true> : &decode_kernel<false>, params, block_per_map,
        sizeof(Part) * kQuarters * (block_per_map ? 1 : kQuarters), device, stream);
}

void cuda_decode_peaks(const HeatmapView& heatmaps, PeakCodec codec, int blur, float threshold, const Output& out,
                       int device, CudaStream stream) {
  check_view(heatmaps);
  check_blur(blur);
  check_threshold(threshold);
  if (heatmaps.batch == 0) return;
  check_output(out);
  const bool together = is_block_per_map(heatmaps);
  const PeakParams params = peak_params(heatmaps, codec, blur, threshold, out, together);
  queue(&peak_kernel, params, together, peak_shared_bytes(params.rule, blur), device, stream);
}

void cuda_decode_simcc(const HeatmapView& x, const HeatmapView& y, float split_ratio, SimccScore score, float threshold,
                       const Output& out, int device, CudaStream stream) {
  check_view(x);
  check_view(y);
  check_simcc(x, y);
  check_positive("split_ratio", split_ratio);
  check_threshold(threshold);
  if (x.batch == 0) return;
  check_output(out);
  const bool together = is_block_per_map(x);
  const SimccParams params = simcc_params(x, y, split_ratio, score, threshold, out, together);
  queue(&simcc_kernel, params, together, kSimccSharedBytes, device, stream);
}

}  // namespace port
