// SPDX-License-Identifier: Apache-2.0
#include "checks.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "decode_peak.h"

namespace port {
namespace {

constexpr int kMaxThreads = 256;
constexpr std::int64_t kMaxBatch = std::int64_t{1} << 40;  // B * N * 8 bytes cannot overflow

}  // namespace

void input_error(const std::string& message) { throw Error(ErrorCode::kInput, message); }

void check_threshold(float threshold) {
  if (!std::isfinite(threshold) || threshold < 0.0f) {
    input_error("expected threshold to be a finite number of at least 0, got " + std::to_string(threshold) +
                ": 0 masks nothing");
  }
}

void check_batch(std::int64_t batch) {
  if (batch < 0 || batch > kMaxBatch) {
    input_error("expected a batch of 0 or more poses, got " + std::to_string(batch));
  }
}

void check_positive(const char* what, float value) {
  if (!std::isfinite(value) || value <= 0.0f) {
    input_error(std::string("expected a positive ") + what + ", got " + std::to_string(value));
  }
}

void check_view(const HeatmapView& view) {
  check_batch(view.batch);
  if (view.joints < 1 || view.height < 1 || view.width < 1 || view.height > kMaxMapSide || view.width > kMaxMapSide) {
    input_error("expected heatmaps [B, N, H, W] with N >= 1 and H, W from 1 to " + std::to_string(kMaxMapSide) +
                ", got [" + std::to_string(view.batch) + ", " + std::to_string(view.joints) + ", " +
                std::to_string(view.height) + ", " + std::to_string(view.width) + "]");
  }
  if (view.data == nullptr && view.batch > 0) input_error("expected heatmaps, got a null pointer");
}

void check_host_view(const HeatmapView& view) {
  check_view(view);
  if (view.dtype == DType::kBfloat16) {
    input_error("expected heatmaps of float32 or float16, got bfloat16: only GPUs read it");
  }
}

void check_joints(const HeatmapView& view, const Model& model) {
  if (view.joints == model.joints()) return;
  input_error("expected heatmaps [B, " + std::to_string(model.joints()) + ", H, W], got " +
              std::to_string(view.joints) + " joints: this model is for skeleton '" + model.skeleton() + "'");
}

void check_blur(int blur) {
  if (blur < kMinBlur || blur > kMaxBlur || blur % 2 == 0) {
    input_error("expected an odd blur from " + std::to_string(kMinBlur) + " to " + std::to_string(kMaxBlur) + ", got " +
                std::to_string(blur));
  }
}

void check_simcc(const HeatmapView& x, const HeatmapView& y) {
  if (x.height != 1 || y.height != 1 || x.batch != y.batch || x.joints != y.joints) {
    input_error("expected SimCC vectors [B, N, bins] of the same poses and joints for x and y, as maps of one row");
  }
}

void check_std(const Output& out, const Model& model) {
  if (!out.std || model.variance()) return;
  input_error("expected no memory for std: model '" + model.name() + "' has no variance (port-train --variance-only)");
}

int resolve_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    input_error("expected threads from 0 (one per processor) to " + std::to_string(kMaxThreads) + ", got " +
                std::to_string(threads));
  }
  return threads > 0 ? threads : std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
}

}  // namespace port
