// SPDX-License-Identifier: Apache-2.0
// The largest pixel of a map, moved by a quarter pixel or by one Newton step on the logarithm of the blurred map.
//
// Work        The argmax kernel has read the whole map. Here only what lies around the peak is read: the blur is formed
//             at 5 x 5 pixels from a window of (blur + 4)^2, 1,100 multiply-adds at a blur of 11.
// Rescaling   MMPose brings the blurred map back to the old maximum before it clips and takes logarithms. The factor
//             cancels in every difference unless a value is clipped, and it lies between 1 and peak / (largest value
//             here). Only where it could matter is the whole map blurred to find it.
// Numerics    float32, as MMPose; within 1e-3 px of it where the step is well conditioned.
// Limits      Blurs from 9 to 63: OpenCV has tables of its own below.
#include "decode_peak.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "half.h"

namespace port {
namespace {

constexpr int kReach = 2;  // pixels beside the peak that a step reads
constexpr int kSide = 2 * kReach + 1;
constexpr int kWindow = kMaxBlur + 2 * kReach;

float value_at(const void* map, const MapShape& shape, int x, int y) {
  const std::int64_t index = y * shape.stride + x;
  return shape.half ? half_to_float(static_cast<const std::uint16_t*>(map)[index])
                    : static_cast<const float*>(map)[index];
}

float sign(float v) { return static_cast<float>((v > 0.0f) - (v < 0.0f)); }

void quarter(const void* map, const MapShape& shape, int x, int y, float xy[2]) {
  const bool inner_x = x > 1 && x < shape.width - 1 && y > 0;
  const bool inner_y = y > 1 && y < shape.height - 1 && x > 0;
  if (inner_x) xy[0] += 0.25f * sign(value_at(map, shape, x + 1, y) - value_at(map, shape, x - 1, y));
  if (inner_y) xy[1] += 0.25f * sign(value_at(map, shape, x, y + 1) - value_at(map, shape, x, y - 1));
}

// Columns first .. first + count - 1 of row y as floats, zeros beyond the map.
void read_row(const void* map, const MapShape& shape, int y, int first, int count, float* out) {
  for (int i = 0; i < count; ++i) {
    const int x = first + i;
    out[i] = x >= 0 && x < shape.width ? value_at(map, shape, x, y) : 0.0f;
  }
}

float blurred_at(const float* taps, int count, const float* values, int step) {
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += taps[i] * values[i * step];
  return sum;
}

// The blurred map at the pixels around (x, y), those beyond the border read on it: out[dy + 2][dx + 2].
void blur_around(const void* map, const MapShape& shape, const float* taps, int half, int x, int y,
                 float out[kSide][kSide]) {
  int columns[kSide], rows[kSide];
  for (int i = 0; i < kSide; ++i) {
    columns[i] = std::clamp(x + i - kReach, 0, shape.width - 1);
    rows[i] = std::clamp(y + i - kReach, 0, shape.height - 1);
  }
  const int taps_count = 2 * half + 1;
  const int left = columns[0] - half, top = rows[0] - half;
  const int width = columns[kSide - 1] - columns[0] + taps_count;
  const int height = rows[kSide - 1] - rows[0] + taps_count;
  float line[kWindow], across[kWindow][kSide];
  for (int r = 0; r < height; ++r) {
    if (top + r < 0 || top + r >= shape.height) {
      std::fill_n(across[r], kSide, 0.0f);
      continue;
    }
    read_row(map, shape, top + r, left, width, line);
    for (int i = 0; i < kSide; ++i) across[r][i] = blurred_at(taps, taps_count, line + columns[i] - half - left, 1);
  }
  for (int j = 0; j < kSide; ++j) {
    for (int i = 0; i < kSide; ++i) {
      out[j][i] = blurred_at(taps, taps_count, &across[rows[j] - half - top][i], kSide);
    }
  }
}

// Largest value of the blurred map.
float blurred_maximum(const void* map, const MapShape& shape, const float* taps, int half) {
  thread_local std::vector<float> line, across;
  const auto width = static_cast<std::size_t>(shape.width), height = static_cast<std::size_t>(shape.height);
  line.resize(width + 2 * static_cast<std::size_t>(half));
  across.assign((height + 2 * static_cast<std::size_t>(half)) * width, 0.0f);
  for (int y = 0; y < shape.height; ++y) {
    read_row(map, shape, y, -half, shape.width + 2 * half, line.data());
    float* const row = across.data() + static_cast<std::size_t>(y + half) * width;
    for (std::size_t x = 0; x < width; ++x) row[x] = blurred_at(taps, 2 * half + 1, line.data() + x, 1);
  }
  float top = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < height * width; ++i) {
    top = std::max(top, blurred_at(taps, 2 * half + 1, across.data() + i, shape.width));
  }
  return top;
}

}  // namespace

void blur_taps(int blur, float* taps) {
  const double sigma = 0.3 * ((blur - 1) / 2.0 - 1.0) + 0.8;  // OpenCV's, where none is named
  double weights[kMaxBlur], sum = 0.0;
  for (int i = 0; i < blur; ++i) {
    weights[i] = std::exp(-0.5 * std::pow((i - blur / 2) / sigma, 2.0));
    sum += weights[i];
  }
  for (int i = 0; i < blur; ++i) taps[i] = static_cast<float>(weights[i] / sum);
}

PeakStep::PeakStep(PeakCodec codec, int blur) : codec_(codec), half_(blur / 2), taps_{} { blur_taps(blur, taps_); }

void PeakStep::apply(const void* map, const MapShape& shape, float xy[2], float* confidence) const {
  if (!(*confidence > 0.0f)) {  // missing already, or nothing above 0
    xy[0] = xy[1] = std::numeric_limits<float>::quiet_NaN();
    *confidence = 0.0f;
    return;
  }
  const int x = static_cast<int>(xy[0]), y = static_cast<int>(xy[1]);
  if (codec_ == PeakCodec::kMsra) return quarter(map, shape, x, y, xy);
  const bool udp = codec_ == PeakCodec::kUdp;
  if (!udp && !(x > 1 && x < shape.width - 2 && y > 1 && y < shape.height - 2)) return;

  float b[kSide][kSide];
  blur_around(map, shape, taps_, half_, x, y, b);
  const float low = udp ? 1e-3f : 1e-10f, high = udp ? 50.0f : std::numeric_limits<float>::max();
  const float peak = value_at(map, shape, x, y);
  const int reach = udp ? 1 : 2;  // what the step reads lies in this square
  float least = b[kReach][kReach], most = least;
  for (int j = kReach - reach; j <= kReach + reach; ++j) {
    for (int i = kReach - reach; i <= kReach + reach; ++i) {
      least = std::min(least, b[j][i]);
      most = std::max(most, b[j][i]);
    }
  }
  // A factor s with 1 <= s <= peak / most clips nothing: then it need not be known.
  const bool clips = !(least >= low && peak <= high);
  const float scale = clips ? peak / blurred_maximum(map, shape, taps_, half_) : 1.0f;
  const auto at = [&](int dx, int dy) {
    return std::log(std::min(std::max(b[kReach + dy][kReach + dx] * scale, low), high));
  };

  const float centre = at(0, 0), right = at(1, 0), left = at(-1, 0), below = at(0, 1), above = at(0, -1);
  const float gx = 0.5f * (right - left), gy = 0.5f * (below - above);
  float xx, yy, xy_;
  if (udp) {
    constexpr float kEps = std::numeric_limits<float>::epsilon();
    xx = right - 2.0f * centre + left + kEps;
    yy = below - 2.0f * centre + above + kEps;
    xy_ = 0.5f * (at(1, 1) - right - below + 2.0f * centre - left - above + at(-1, -1));
  } else {
    xx = 0.25f * (at(2, 0) - 2.0f * centre + at(-2, 0));
    yy = 0.25f * (at(0, 2) - 2.0f * centre + at(0, -2));
    xy_ = 0.25f * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1));
  }
  const float determinant = xx * yy - xy_ * xy_;
  const float dx = (xy_ * gy - yy * gx) / determinant, dy = (xy_ * gx - xx * gy) / determinant;
  if (!std::isfinite(dx) || !std::isfinite(dy)) return;
  xy[0] += dx;
  xy[1] += dy;
}

}  // namespace port
