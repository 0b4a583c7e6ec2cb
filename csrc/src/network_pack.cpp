// SPDX-License-Identifier: Apache-2.0
// Packs a folded network: weights in panels of 32 columns (gemm.h says why), tables beside them, in reading order, so
// that the prefetch of "the next panel" is right across matrices too. network_pack.h is the interface.
#include "network_pack.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "port/port.hpp"

namespace port {

namespace {

constexpr std::size_t kAlign = 64;

int padded(int count, int unit) { return (count + unit - 1) / unit * unit; }

std::uint16_t to_bf16(float value) {  // round to nearest, ties to even; weights are finite
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

class Packer {
 public:
  Packer() : bytes_(kAlign, 0) {}  // offset 0 says "none"

  template <typename T>
  Offset add(const T* values, std::size_t count) {
    bytes_.resize((bytes_.size() + kAlign - 1) / kAlign * kAlign);
    const std::size_t at = bytes_.size();
    if (at + count * sizeof(T) > 0xffffffffu) {
      throw Error(ErrorCode::kModelFile, "the model's packed weights exceed 4 GiB: use a smaller network");
    }
    bytes_.resize(at + count * sizeof(T));
    std::memcpy(bytes_.data() + at, values, count * sizeof(T));
    return static_cast<Offset>(at);
  }

  template <typename T>
  Offset add(const std::vector<T>& values) {
    return values.empty() ? 0 : add(values.data(), values.size());
  }

  Offset add_floats(const std::vector<double>& values, int padded_count) {
    std::vector<float> floats(static_cast<std::size_t>(padded_count), 0.0f);
    for (std::size_t i = 0; i < values.size(); ++i) floats[i] = static_cast<float>(values[i]);
    return add(floats);
  }

  Matrix add_matrix(const Dense& m, bool bf16) {
    Matrix matrix;
    matrix.bf16 = bf16 ? 1 : 0;
    matrix.k = bf16 ? padded(m.rows, 2) : m.rows;
    matrix.cols = padded(m.cols, kLane);
    const auto value = [&](int r, int c) { return r < m.rows && c < m.cols ? static_cast<float>(m(r, c)) : 0.0f; };
    const std::size_t count = static_cast<std::size_t>(matrix.k) * static_cast<std::size_t>(matrix.cols);
    std::vector<float> floats;
    std::vector<std::uint16_t> halves;
    if (bf16) {
      halves.reserve(count);
    } else {
      floats.reserve(count);
    }
    for (int panel = 0; panel < matrix.cols; panel += kPanel) {
      const int width = std::min(kPanel, matrix.cols - panel);
      for (int r = 0; r < matrix.k; r += bf16 ? 2 : 1) {
        for (int c = panel; c < panel + width; ++c) {
          if (!bf16) {
            floats.push_back(value(r, c));
            continue;
          }
          halves.push_back(to_bf16(value(r, c)));
          halves.push_back(to_bf16(value(r + 1, c)));
        }
      }
    }
    matrix.data = bf16 ? add(halves) : add(floats);
    return matrix;
  }

  Arena finish() const {
    Arena arena(static_cast<unsigned char*>(::operator new[](bytes_.size(), std::align_val_t{kAlign})));
    std::memcpy(arena.get(), bytes_.data(), bytes_.size());
    return arena;
  }

  std::size_t size() const { return bytes_.size(); }

 private:
  std::vector<unsigned char> bytes_;
};

Hops pack_hops(const std::vector<Dense>& hops, Packer* packer) {
  std::vector<std::int32_t> start = {0}, index;
  std::vector<float> value;
  for (const Dense& h : hops) {
    for (int i = 0; i < h.rows; ++i) {
      for (int m = 0; m < h.cols; ++m) {
        if (h(i, m) == 0.0) continue;
        index.push_back(m);
        value.push_back(static_cast<float>(h(i, m)));
      }
      start.push_back(static_cast<std::int32_t>(index.size()));
    }
  }
  Hops packed;
  packed.count = static_cast<std::int32_t>(hops.size());
  packed.start = packer->add(start);
  packed.index = packer->add(index);
  packed.value = packer->add(value);
  return packed;
}

LayerPlan pack_layer(const FoldedNetwork& net, const FoldedLayer& layer, const Plan& plan, bool bf16_attention,
                     bool bf16_mlp, Packer* packer) {
  LayerPlan out;
  const int hops = static_cast<int>(net.hops.size()), n = plan.joints;
  out.width = layer.width;
  out.x_ld = padded(layer.width, kLane);
  out.y_cols = layer.y_cols;
  // The last block is written in whole vectors.
  out.y_ld = padded(std::max(layer.y_cols, (hops - 1) * layer.width + out.x_ld), kLane);
  out.score_width = layer.score_width;
  out.score_ld = padded(layer.score_width, kLane);
  out.values = layer.values;

  const int tail_cols = out.y_ld - hops * layer.width;
  Dense tail(n, tail_cols);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < hops; ++j) {
      const double* row = net.hops.data()[j].row(i);
      for (int m = 0; m < n; ++m) tail(i, j) += row[m];
    }
  }
  out.tail = packer->add_floats(tail.values, n * tail_cols);

  std::vector<HeadPlan> heads;
  for (const FoldedHead& folded : layer.heads) {
    HeadPlan head;
    head.key = packer->add_matrix(folded.key, bf16_attention);
    if (folded.query.rows > 0) head.query = packer->add_matrix(folded.query, bf16_attention);
    head.select = packer->add(std::vector<std::int32_t>(folded.select.begin(), folded.select.end()));
    head.rest = packer->add(std::vector<std::int32_t>(folded.rest.begin(), folded.rest.end()));
    heads.push_back(head);
  }
  for (std::size_t h = 0; h < heads.size(); ++h) {
    if (layer.heads[h].value.rows > 0) heads[h].value = packer->add_matrix(layer.heads[h].value, bf16_attention);
  }
  out.value_ld = layer.values == Values::kShared ? padded(out.y_cols, kLane) : heads[0].value.cols;
  if (!layer.out.empty()) {
    Dense stacked(plan.heads * out.value_ld, plan.d);
    for (int h = 0; h < plan.heads; ++h) {
      const Dense& block = layer.out.data()[h];
      for (int r = 0; r < block.rows; ++r) {
        for (int c = 0; c < plan.d; ++c) stacked(h * out.value_ld + r, c) = block(r, c);
      }
    }
    out.out = packer->add_matrix(stacked, bf16_attention);
  }
  out.heads = packer->add(heads);
  out.out_bias = packer->add_floats(layer.out_bias, plan.d_ld);
  out.fc1_bias = packer->add_floats(layer.fc1_bias, plan.hidden_ld);
  out.fc2_bias = packer->add_floats(layer.fc2_bias, plan.d_ld);
  out.fc1 = packer->add_matrix(layer.fc1, bf16_mlp);
  out.fc2 = packer->add_matrix(layer.fc2, bf16_mlp);
  return out;
}

}  // namespace

void ArenaDelete::operator()(unsigned char* memory) const { ::operator delete[](memory, std::align_val_t{kAlign}); }

PackedNetwork pack(const ModelSpec& spec, const FoldedNetwork& net, int vector_floats, bool bf16,
                   const float* out_weight, const float* out_bias) {
  const NetworkConfig& config = spec.config;
  PackedNetwork packed;
  Plan& plan = packed.plan;
  Packer packer;
  plan.joints = spec.joints();
  plan.joints_ld = padded(plan.joints, std::max(vector_floats, 4));
  plan.channels = config.input_channels;
  plan.d = config.width;
  plan.d_ld = padded(config.width, kLane);
  plan.hidden_ld = padded(config.mlp_width(), kLane);
  plan.se_ld = padded(config.se_width(), kLane);
  plan.heads = config.heads;
  plan.layers = config.layers;
  plan.bf16 = bf16 ? 1 : 0;
  plan.mask_embedding = config.mask_embedding ? 1 : 0;
  plan.residual = config.residual ? 1 : 0;
  plan.outputs = config.outputs();
  plan.low_rank_first = net.low_rank_first ? 1 : 0;
  plan.rank = net.rank;
  plan.eps = config.layer_norm_eps;
  plan.hops = pack_hops(net.hops, &packer);
  plan.embed = packer.add_matrix(net.embed, false);

  std::vector<LayerPlan> layers;
  for (int l = 0; l < config.layers; ++l) {
    const bool bf16_attention = bf16 && !(l == 0 && net.low_rank_first);
    layers.push_back(pack_layer(net, net.layers.data()[l], plan, bf16_attention, bf16, &packer));
    plan.max_y_ld = std::max(plan.max_y_ld, layers.back().y_ld);
    plan.max_score_width = std::max(plan.max_score_width, layers.back().score_width);
    plan.max_score_ld = std::max(plan.max_score_ld, layers.back().score_ld);
    plan.max_value_ld = std::max(plan.max_value_ld, layers.back().value_ld);
  }
  plan.layer = packer.add(layers);
  plan.se1 = packer.add_matrix(net.se1, false);
  plan.se2 = packer.add_matrix(net.se2, false);
  plan.se1_bias = packer.add_floats(net.se1_bias, plan.se_ld);
  plan.se2_bias = packer.add_floats(net.se2_bias, plan.d_ld);
  std::vector<float> weight(static_cast<std::size_t>(plan.outputs * plan.d_ld), 0.0f);
  for (int axis = 0; axis < plan.outputs; ++axis) {
    std::copy(out_weight + axis * plan.d, out_weight + (axis + 1) * plan.d, weight.begin() + axis * plan.d_ld);
  }
  plan.out_weight = packer.add(weight);
  plan.out_bias = packer.add(out_bias, static_cast<std::size_t>(plan.outputs));

  packed.arena = packer.finish();
  plan.arena = packed.arena.get();
  plan.arena_bytes = packer.size();
  Workspace unused;
  plan.workspace_bytes = lay_out(plan, nullptr, &unused);
  return packed;
}

}  // namespace port
