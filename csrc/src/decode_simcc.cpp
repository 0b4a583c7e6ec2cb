// SPDX-License-Identifier: Apache-2.0
// port::decode_simcc: two vectors of scores for each joint to joints, confidence and mask. A vector is a map of one row
// to the argmax kernel. Test: csrc/tests/test_decode_peak.cpp, tests/test_decode_codecs.py.
#include <algorithm>
#include <limits>

#include "checks.h"
#include "decode.h"
#include "decode_pose.h"
#include "dispatch.h"
#include "half.h"
#include "thread_pool.h"

namespace port {
namespace {

struct Axis {
  const HeatmapView* view;
  MapShape shape;
};

struct SimccCall {
  DecodeFn kernel;
  Axis x, y;
  float split_ratio, threshold;
  SimccScore score;
  const Output* out;
};

constexpr int kPart = 64;  // joints at a time

const char* vector_at(const Axis& axis, std::int64_t pose, int joint) {
  const std::int64_t at = pose * axis.view->stride_b + joint * axis.view->stride_n;
  return static_cast<const char*>(axis.view->data) + at * (axis.shape.half ? 2 : 4);
}

// The largest value of a vector, given its place (x, 0); NaN where the place is.
float largest(const Axis& axis, std::int64_t pose, int joint, float place) {
  if (!(place >= 0.0f)) return std::numeric_limits<float>::quiet_NaN();
  const char* const vector = vector_at(axis, pose, joint);
  const auto index = static_cast<std::size_t>(place);
  return axis.shape.half ? half_to_float(reinterpret_cast<const std::uint16_t*>(vector)[index])
                         : reinterpret_cast<const float*>(vector)[index];
}

void decode_pose(void* context, std::int64_t pose) {
  alignas(64) thread_local float scratch[kDecodeScratch];
  const auto& call = *static_cast<const SimccCall*>(context);
  const int n = call.x.view->joints;
  float x[2 * kPart], y[2 * kPart], clipped[kPart];
  for (int first = 0; first < n; first += kPart) {
    const int count = std::min(kPart, n - first);
    call.kernel(vector_at(call.x, pose, first), call.x.shape, count, scratch, x, clipped);
    call.kernel(vector_at(call.y, pose, first), call.y.shape, count, scratch, y, clipped);
    for (int j = 0; j < count; ++j) {
      const float a = largest(call.x, pose, first + j, x[2 * j]), b = largest(call.y, pose, first + j, y[2 * j]);
      const float score = call.score == SimccScore::kMin ? (b < a ? b : a) : 0.5f * (a + b);
      const bool found = score > 0.0f && a == a && b == b;
      const std::int64_t row = pose * n + first + j;
      const float nan = std::numeric_limits<float>::quiet_NaN();
      const float confidence = found ? std::min(score, 1.0f) : 0.0f;
      call.out->joints[2 * row] = found ? x[2 * j] / call.split_ratio : nan;
      call.out->joints[2 * row + 1] = found ? y[2 * j] / call.split_ratio : nan;
      if (call.out->confidence) call.out->confidence[row] = confidence;
      if (call.out->mask) call.out->mask[row] = !found || !(confidence >= call.threshold);
    }
  }
}

}  // namespace

void decode_simcc(const HeatmapView& x, const HeatmapView& y, float split_ratio, SimccScore score, float threshold,
                  const Output& out, int threads, std::optional<Isa> isa) {
  check_host_view(x);
  check_host_view(y);
  check_simcc(x, y);
  check_positive("split_ratio", split_ratio);
  check_threshold(threshold);
  const int count = resolve_threads(threads);
  const Isa chosen = select_isa(isa);
  if (x.batch == 0) return;
  if (out.joints == nullptr) input_error("expected memory for joints [B, N, 2], got a null pointer");
  const DecodeSettings settings(decode_for(chosen), Codec::kArgmax, 1.0f);
  SimccCall call{
      settings.kernel, {&x, settings.shape_of(x)}, {&y, settings.shape_of(y)}, split_ratio, threshold, score, &out};
  for_each_pose(x.batch, count, &decode_pose, &call);
}

}  // namespace port
