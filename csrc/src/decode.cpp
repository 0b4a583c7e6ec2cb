// SPDX-License-Identifier: Apache-2.0
// port::decode: heatmaps to joints, confidence and mask, without a model. Test: csrc/tests/test_decode.cpp.
#include "decode.h"

#include <algorithm>
#include <cmath>

#include "aligned.h"
#include "checks.h"
#include "decode_peak.h"
#include "decode_pose.h"
#include "dispatch.h"
#include "line.h"
#include "thread_pool.h"

namespace port {
namespace {

struct DecodeCall {
  DecodeFn kernel;
  MapShape shape;
  const HeatmapView* view;
  const Output* out;
  float threshold;
  const PeakStep* step;  // after the largest pixel; null: none
};

void decode_one(void* context, std::int64_t pose) {
  // Sized for the largest map, so that a thread allocates once; pages that small maps do not touch cost nothing.
  thread_local const AlignedBuffer scratch(sizeof(float) * kDecodeScratch);
  constexpr int kPart = 64;  // joints at a time, where the caller wants no confidence
  float spare[kPart];
  const auto& call = *static_cast<const DecodeCall*>(context);
  const int n = call.view->joints, part = call.out->confidence ? n : kPart;
  for (int first = 0; first < n; first += part) {
    const int count = std::min(part, n - first);
    const std::int64_t row = pose * n + first;
    float* joints = call.out->joints + 2 * row;
    float* confidence = call.out->confidence ? call.out->confidence + row : spare;
    decode_joints(call.kernel, call.shape, *call.view, pose, first, count, scratch.as<float>(), joints, confidence);
    for (int j = 0; call.step && j < count; ++j) {
      const std::int64_t at = pose * call.view->stride_b + (first + j) * call.view->stride_n;
      const char* const map = static_cast<const char*>(call.view->data) + at * (call.shape.half ? 2 : 4);
      call.step->apply(map, call.shape, joints + 2 * j, confidence + j);
    }
    if (call.out->mask == nullptr) continue;
    for (int j = 0; j < count; ++j) {
      call.out->mask[row + j] = !(confidence[j] >= call.threshold) || is_missing(joints + 2 * j);
    }
  }
}

// Lives until the process ends: threads are not joined from static destructors, where other libraries may be gone.
ThreadPool& shared_pool() {
  static ThreadPool* const pool = new ThreadPool(resolve_threads(0));
  return *pool;
}

void decode_maps(const HeatmapView& heatmaps, Codec codec, float temperature, const PeakStep* step, float threshold,
                 const Output& out, int threads, std::optional<Isa> isa) {
  check_host_view(heatmaps);
  check_positive("temperature", temperature);
  check_threshold(threshold);
  const int count = resolve_threads(threads);
  const Isa chosen = select_isa(isa);
  if (heatmaps.batch == 0) return;
  if (out.joints == nullptr) input_error("expected memory for joints [B, N, 2], got a null pointer");
  const DecodeSettings settings(decode_for(chosen), codec, temperature);
  DecodeCall call{settings.kernel, settings.shape_of(heatmaps), &heatmaps, &out, threshold, step};
  for_each_pose(heatmaps.batch, count, &decode_one, &call);
}

}  // namespace

void for_each_pose(std::int64_t batch, int threads, ThreadPool::Work work, void* context) {
  if (threads == 1 || batch == 1) {
    for (std::int64_t pose = 0; pose < batch; ++pose) work(context, pose);
  } else {
    shared_pool().run(batch, threads, work, context);
  }
}

void decode_joints(DecodeFn kernel, const MapShape& shape, const HeatmapView& view, std::int64_t pose, int first,
                   int count, float* scratch, float* joints, float* confidence) {
  const std::int64_t at = pose * view.stride_b + first * view.stride_n;
  kernel(static_cast<const char*>(view.data) + at * (shape.half ? 2 : 4), shape, count, scratch, joints, confidence);
}

DecodeSettings::DecodeSettings(DecodeFn fn, Codec how, float t)
    : kernel(fn),
      codec(how == Codec::kArgmax          ? MapCodec::kArgmax
            : how == Codec::kSoftargmaxSum ? MapCodec::kSoftargmaxSum
                                           : MapCodec::kSoftargmax),
      temperature(t) {}

MapShape DecodeSettings::shape_of(const HeatmapView& view) const {
  const float t = std::min(temperature, 1e30f);
  const float area = static_cast<float>(view.height) * static_cast<float>(view.width);
  const float side = static_cast<float>(std::max(view.height, view.width));
  return {
      view.dtype == DType::kFloat16,      view.height, view.width, view.stride_h, view.stride_n, codec, t * 1.44269504f,
      (11.1f + std::log(area * side)) / t};  // 11.1 > ln(2^16)
}

void decode(const HeatmapView& heatmaps, Codec codec, float temperature, float threshold, const Output& out,
            int threads, std::optional<Isa> isa) {
  decode_maps(heatmaps, codec, temperature, nullptr, threshold, out, threads, isa);
}

void decode_peaks(const HeatmapView& heatmaps, PeakCodec codec, int blur, float threshold, const Output& out,
                  int threads, std::optional<Isa> isa) {
  check_blur(blur);
  const PeakStep step(codec, blur);
  decode_maps(heatmaps, Codec::kArgmax, 1.0f, &step, threshold, out, threads, isa);
}

}  // namespace port
