// SPDX-License-Identifier: Apache-2.0
// PORT in double, eqs. (4)-(11) as the paper prints them, and random models to try it on: what test_network.cpp
// compares the kernels with. Nothing here is folded, packed or shared with csrc/src but the specification.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "model.h"

namespace port_test {

using Matrix = std::vector<std::vector<double>>;
using Round = std::function<double(double)>;  // what the operands of the encoder's products are rounded to

inline double keep(double x) { return x; }

inline double to_bf16(double x) {
  const float value = static_cast<float>(x);
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  float rounded;
  std::memcpy(&rounded, &bits, 4);
  return static_cast<double>(rounded);
}

inline Matrix zeros(std::size_t rows, std::size_t cols) { return Matrix(rows, std::vector<double>(cols, 0.0)); }

// a b, or a b^T, with every operand rounded.
inline Matrix times(const Matrix& a, const Matrix& b, const Round& round, bool transposed = false) {
  const std::size_t cols = transposed ? b.size() : b[0].size(), inner = a[0].size();
  Matrix c = zeros(a.size(), cols);
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < cols; ++j) {
      for (std::size_t k = 0; k < inner; ++k) c[i][j] += round(a[i][k]) * round(transposed ? b[j][k] : b[k][j]);
    }
  }
  return c;
}

struct Reference {
  const port::ModelSpec& spec;
  const port::Tensors& tensors;
  Round round = keep;

  Matrix matrix(const std::string& name, std::size_t rows, std::size_t cols, std::size_t skip = 0) const {
    Matrix m = zeros(rows, cols);
    for (std::size_t i = 0; i < rows * cols; ++i) {
      m[i / cols][i % cols] = static_cast<double>(tensors.at(name).values[skip * rows * cols + i]);
    }
    return m;
  }

  // Eq. (4): the mean over K of Ã^k x W_k.
  Matrix msgc(const std::string& name, const Matrix& x, std::size_t out, const Round& rounding) const {
    Matrix sum = zeros(x.size(), out);
    for (std::size_t j = 0; j < spec.config.hops.size(); ++j) {
      const std::vector<double> flat = port::hop_matrix(spec, spec.config.hops[j]);
      Matrix hop = zeros(x.size(), x.size());
      for (std::size_t i = 0; i < flat.size(); ++i) hop[i / x.size()][i % x.size()] = flat[i];
      const std::size_t which = spec.config.share_hop_weights ? 0 : j;
      const Matrix term = times(times(hop, x, rounding), matrix(name, x[0].size(), out, which), rounding);
      for (std::size_t i = 0; i < x.size(); ++i) {
        for (std::size_t c = 0; c < out; ++c) sum[i][c] += term[i][c] / static_cast<double>(spec.config.hops.size());
      }
    }
    return sum;
  }

  // x W^T + b
  Matrix linear(const std::string& name, const Matrix& x, std::size_t out, const Round& rounding) const {
    Matrix y = times(x, matrix(name + ".weight", out, x[0].size()), rounding, true);
    for (auto& row : y) {
      for (std::size_t c = 0; c < out; ++c) row[c] += static_cast<double>(tensors.at(name + ".bias").values[c]);
    }
    return y;
  }

  Matrix layer_norm(const std::string& name, const Matrix& z) const {
    Matrix x = z;
    for (auto& row : x) {
      const double d = static_cast<double>(row.size());
      double mean = 0.0, variance = 0.0;
      for (const double v : row) mean += v / d;
      for (const double v : row) variance += (v - mean) * (v - mean) / d;
      for (std::size_t c = 0; c < row.size(); ++c) {
        row[c] = (row[c] - mean) / std::sqrt(variance + static_cast<double>(spec.config.layer_norm_eps));
        row[c] = row[c] * static_cast<double>(tensors.at(name + ".weight").values[c]) +
                 static_cast<double>(tensors.at(name + ".bias").values[c]);
      }
    }
    return x;
  }

  void layer(const std::string& prefix, Matrix* z) const {
    const port::NetworkConfig& config = spec.config;
    const auto inner = static_cast<std::size_t>(config.inner()), heads = static_cast<std::size_t>(config.heads);
    const auto dh = static_cast<std::size_t>(config.head_dim), d = static_cast<std::size_t>(config.width);
    const Matrix x = layer_norm(prefix + "norm1", *z);
    const Matrix q = msgc(prefix + "q.weight", x, inner, round), k = msgc(prefix + "k.weight", x, inner, round);
    const Matrix v = msgc(prefix + "v.weight", x, inner, round);
    const double scale = 1.0 / std::sqrt(static_cast<double>(config.attention_scale_width ? d : dh));
    Matrix mixed = zeros(x.size(), inner);
    for (std::size_t h = 0; h < heads; ++h) {  // eq. (7)
      const auto part = [&](const Matrix& m) {
        Matrix columns = zeros(m.size(), dh);
        for (std::size_t i = 0; i < m.size(); ++i) {
          for (std::size_t c = 0; c < dh; ++c) columns[i][c] = m[i][h * dh + c];
        }
        return columns;
      };
      Matrix p = times(part(q), part(k), round, true);
      for (auto& row : p) {
        const double most = *std::max_element(row.begin(), row.end());
        double total = 0.0;
        for (double& s : row) total += s = std::exp((s - most) * scale);
        for (double& s : row) s /= total;
      }
      const Matrix o = times(p, part(v), round);
      for (std::size_t i = 0; i < o.size(); ++i) {
        for (std::size_t c = 0; c < dh; ++c) mixed[i][h * dh + c] = o[i][c];
      }
    }
    add(linear(prefix + "out", mixed, d, round), z);  // eq. (8)
    Matrix hidden =
        linear(prefix + "fc1", layer_norm(prefix + "norm2", *z), static_cast<std::size_t>(config.mlp_width()), round);
    for (auto& row : hidden) {
      for (double& value : row) value = std::max(value, 0.0);
    }
    add(linear(prefix + "fc2", hidden, d, round), z);  // eq. (9)
  }

  static void add(const Matrix& term, Matrix* z) {
    for (std::size_t i = 0; i < term.size(); ++i) {
      for (std::size_t c = 0; c < term[0].size(); ++c) (*z)[i][c] += term[i][c];
    }
  }

  // One pose: inputs [N][channels], mask [N] to [N][2], and to [N] log sigma of a model with a variance.
  std::vector<double> operator()(const float* inputs, const std::uint8_t* mask,
                                 std::vector<double>* log_std = nullptr) const {
    const port::NetworkConfig& config = spec.config;
    const auto n = static_cast<std::size_t>(spec.joints()), d = static_cast<std::size_t>(config.width);
    const auto channels = static_cast<std::size_t>(config.input_channels);
    Matrix x = zeros(n, channels);
    for (std::size_t i = 0; i < n * channels; ++i) x[i / channels][i % channels] = static_cast<double>(inputs[i]);
    Matrix z = msgc("embed.weight", x, d, keep);  // eq. (5)
    for (std::size_t i = 0; i < n && config.mask_embedding; ++i) {
      for (std::size_t c = 0; c < d && mask[i]; ++c)
        z[i][c] = static_cast<double>(tensors.at("mask_embedding").values[c]);
    }
    for (int l = 0; l < config.layers; ++l) layer("layers." + std::to_string(l) + ".", &z);
    Matrix mean = zeros(1, d);  // eq. (10)
    for (const auto& row : z) {
      for (std::size_t c = 0; c < d; ++c) mean[0][c] += row[c] / static_cast<double>(n);
    }
    Matrix squeezed = linear("head.se1", mean, static_cast<std::size_t>(config.se_width()), keep);
    for (double& value : squeezed[0]) value = std::max(value, 0.0);
    const Matrix gate = linear("head.se2", squeezed, d, keep);
    for (auto& row : z) {
      for (std::size_t c = 0; c < d; ++c) row[c] /= 1.0 + std::exp(-gate[0][c]);
    }
    const Matrix joints = linear("head.out", z, static_cast<std::size_t>(config.outputs()), keep);  // eq. (11)
    for (std::size_t i = 0; log_std && i < n; ++i) log_std->push_back(joints[i][2]);
    std::vector<double> out(n * 2);
    for (std::size_t i = 0; i < n * 2; ++i) {
      out[i] = joints[i / 2][i % 2] + (config.residual ? x[i / 2][i % 2] : 0.0);
    }
    return out;
  }
};

// A hand of five fingers for 21 joints, else a chain.
inline port::ModelSpec make_spec(int joints, const port::NetworkConfig& config = {}) {
  port::ModelSpec spec;
  spec.config = config;
  for (int i = 0; i < joints; ++i) spec.joint_names.push_back("joint" + std::to_string(i));
  for (int i = 1; i < joints; ++i) {
    spec.bones.push_back(joints == 21 && i % 4 == 1 ? std::array<int, 2>{0, i} : std::array<int, 2>{i - 1, i});
  }
  return spec;
}

// Weights of about the size that training gives: activations stay of order one.
inline port::Tensors make_tensors(const port::ModelSpec& spec, unsigned seed = 1) {
  const port::NetworkConfig& config = spec.config;
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  port::Tensors tensors;
  const auto add = [&](const std::string& name, int count, float scale, float offset = 0.0f) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = offset + scale * normal(generator);
    tensors[name].values = std::move(values);
  };
  const auto over_root = [](int fan_in) { return 1.0f / std::sqrt(static_cast<float>(fan_in)); };
  const int d = config.width, inner = config.inner(), hidden = config.mlp_width(), se = config.se_width();
  const int hops = config.share_hop_weights ? 1 : static_cast<int>(config.hops.size());
  add("embed.weight", hops * config.input_channels * d, 0.5f);
  if (config.mask_embedding) add("mask_embedding", d, 0.5f);
  for (int l = 0; l < config.layers; ++l) {
    const std::string prefix = "layers." + std::to_string(l) + ".";
    for (const char* norm : {"norm1", "norm2"}) {
      add(prefix + norm + ".weight", d, 0.2f, 1.0f);
      add(prefix + norm + ".bias", d, 0.2f);
    }
    for (const char* name : {"q.weight", "k.weight", "v.weight"})
      add(prefix + name, hops * d * inner, 1.5f * over_root(d));
    add(prefix + "out.weight", d * inner, over_root(inner));
    add(prefix + "out.bias", d, 0.1f);
    add(prefix + "fc1.weight", hidden * d, over_root(d));
    add(prefix + "fc1.bias", hidden, 0.1f);
    add(prefix + "fc2.weight", d * hidden, over_root(hidden));
    add(prefix + "fc2.bias", d, 0.1f);
  }
  add("head.se1.weight", se * d, over_root(d));
  add("head.se1.bias", se, 0.1f);
  add("head.se2.weight", d * se, over_root(se));
  add("head.se2.bias", d, 0.1f);
  const int outputs = spec.config.outputs();
  add("head.out.weight", outputs * d, over_root(d));
  add("head.out.bias", outputs, 0.1f);
  return tensors;
}

}  // namespace port_test
