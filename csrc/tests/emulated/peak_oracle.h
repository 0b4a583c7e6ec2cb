// SPDX-License-Identifier: Apache-2.0
// What the codecs of the largest pixel answer, in double and without the shortcuts: the whole map is blurred, column by
// column first, and always brought back to its old maximum. With it, how far rounding to float may move the answer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "port/port.hpp"

namespace port_test {

struct PeakTruth {
  bool missing = true;
  double x = 0.0, y = 0.0, confidence = 0.0;
  double allowed = 0.0;     // pixels
  bool conditioned = true;  // else the curvature is not known to a tenth, and the step means nothing
};

struct PeakOracle {
  std::vector<double> map;  // [height][width]
  int height, width;
  port::PeakCodec codec;
  int blur;

  double at(int x, int y) const { return map[static_cast<std::size_t>(y * width + x)]; }

  // Blurred along the columns, then along the rows; zeros beyond the map.
  std::vector<double> blurred(bool magnitudes) const {
    const int half = blur / 2;
    const double sigma = 0.3 * ((blur - 1) * 0.5 - 1.0) + 0.8;
    std::vector<double> taps;
    double total = 0.0;
    for (int i = -half; i <= half; ++i) taps.push_back(std::exp(-i * i / (2.0 * sigma * sigma)));
    for (const double tap : taps) total += tap;
    std::vector<double> down(map.size(), 0.0), both(map.size(), 0.0);
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        for (int v = std::max(0, y - half); v <= std::min(height - 1, y + half); ++v) {
          const double value = magnitudes ? std::fabs(at(x, v)) : at(x, v);
          down[static_cast<std::size_t>(y * width + x)] += taps[static_cast<std::size_t>(v - y + half)] / total * value;
        }
      }
    }
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        for (int u = std::max(0, x - half); u <= std::min(width - 1, x + half); ++u) {
          both[static_cast<std::size_t>(y * width + x)] +=
              taps[static_cast<std::size_t>(u - x + half)] / total * down[static_cast<std::size_t>(y * width + u)];
        }
      }
    }
    return both;
  }

  PeakTruth operator()() const {
    PeakTruth truth;
    std::size_t first = 0;
    for (std::size_t i = 0; i < map.size(); ++i) {
      if (!(map[i] <= static_cast<double>(3e38f))) return truth;
      if (map[i] > map[first]) first = i;
    }
    const double peak = map[first];
    if (!(peak > 0.0)) return truth;
    const int x = static_cast<int>(first) % width, y = static_cast<int>(first) / width;
    truth.missing = false;
    truth.x = x;
    truth.y = y;
    truth.confidence = std::min(peak, 1.0);
    if (codec == port::PeakCodec::kMsra) {
      const auto toward = [](double more, double less) { return more > less ? 0.25 : more < less ? -0.25 : 0.0; };
      if (x >= 2 && x <= width - 2 && y >= 1) truth.x += toward(at(x + 1, y), at(x - 1, y));
      if (y >= 2 && y <= height - 2 && x >= 1) truth.y += toward(at(x, y + 1), at(x, y - 1));
    } else if (codec == port::PeakCodec::kUdp || (x >= 2 && x <= width - 3 && y >= 2 && y <= height - 3)) {
      step(x, y, peak, &truth);
    }
    return truth;
  }

  void step(int x, int y, double peak, PeakTruth* truth) const {
    const bool udp = codec == port::PeakCodec::kUdp;
    const double low = udp ? 1e-3 : 1e-10, high = udp ? 50.0 : 3.4028234663852886e38, unit = 0x1p-24;
    const std::vector<double> soft = blurred(false), magnitude = blurred(true);
    const std::size_t top = static_cast<std::size_t>(std::max_element(soft.begin(), soft.end()) - soft.begin());
    const double scale = peak / soft[top], roundings = (2.0 * blur + 10.0) * unit;
    const double scale_error = roundings * magnitude[top] / std::fabs(soft[top]);
    double error = 0.0;  // of a logarithm
    const auto log_at = [&](int dx, int dy) {
      const int u = std::clamp(x + dx, 0, width - 1), v = std::clamp(y + dy, 0, height - 1);
      const auto i = static_cast<std::size_t>(v * width + u);
      const double value = std::min(std::max(soft[i] * scale, low), high);
      const double off = std::fabs(scale) * (roundings * magnitude[i] + scale_error * std::fabs(soft[i]));
      const bool clipped = soft[i] * scale + off < low || soft[i] * scale - off > high;
      error = std::max(error, (clipped ? 0.0 : off / value) + 2.0 * unit * std::fabs(std::log(value)));
      return std::log(value);
    };
    double g[2], xx, yy, xy;
    const double c = log_at(0, 0);
    g[0] = (log_at(1, 0) - log_at(-1, 0)) / 2.0;
    g[1] = (log_at(0, 1) - log_at(0, -1)) / 2.0;
    if (udp) {
      xx = log_at(1, 0) - 2.0 * c + log_at(-1, 0) + 0x1p-23;
      yy = log_at(0, 1) - 2.0 * c + log_at(0, -1) + 0x1p-23;
      xy = log_at(1, 1) - log_at(1, 0) - log_at(0, 1) + 2.0 * c - log_at(-1, 0) - log_at(0, -1) + log_at(-1, -1);
      xy /= 2.0;
    } else {
      xx = (log_at(2, 0) - 2.0 * c + log_at(-2, 0)) / 4.0;
      yy = (log_at(0, 2) - 2.0 * c + log_at(0, -2)) / 4.0;
      xy = (log_at(1, 1) - log_at(1, -1) - log_at(-1, 1) + log_at(-1, -1)) / 4.0;
    }
    const double determinant = xx * yy - xy * xy;
    const double inverse = std::sqrt(xx * xx + yy * yy + 2.0 * xy * xy) / std::fabs(determinant);  // its norm
    const double dx = (xy * g[1] - yy * g[0]) / determinant, dy = (xy * g[0] - xx * g[1]) / determinant;
    truth->conditioned = 4.0 * error * inverse < 0.1;  // false for NaN, too
    if (!std::isfinite(dx) || !std::isfinite(dy)) return;
    truth->x += dx;
    truth->y += dy;
    truth->allowed = 3.0 * inverse * error * (1.0 + 4.0 * std::hypot(dx, dy));
  }
};

}  // namespace port_test
