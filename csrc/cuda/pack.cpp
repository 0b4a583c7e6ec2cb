// SPDX-License-Identifier: Apache-2.0
// What lies where in the blob (every part on 128 bytes):
//   shares  for every layer, for every slot: what the block that owns the slot needs of that layer, so that one bulk
//           copy brings it. A slot has the heads h with h % slots == slot, one per round, and every slots-th part of
//           the hidden units. A share is
//             qk          of each round: [2 head_ld][hops width_ld] weights of the queries, then of the keys
//             value       of each round: [width_ld][hops width_ld], W_V W_O
//             fc1, fc2    [16 hidden_tiles][width_ld], [width_ld][16 hidden_tiles]
//             biases      float, of each round: [hops][2 head_ld], [hops][width_ld]; [16 hidden_tiles]
//           fp16, bf16: weights transposed, [out][in] in tiles of 16 x 16, row of tiles after row of tiles. A tile is
//             [lane][8]: the four registers of the left operand of mma.m16n8k16, in order (PTX ISA).
//           fp32: one slot, weights [in][out] row-major.
//   tables, embed, biases of layers, head: as kernels::Network says. All padding is zero.
#include "pack.h"

#include <cmath>
#include <cstring>

#include "kernels/layout.h"
#include "network_fold.h"

namespace port {
namespace {

constexpr int kTile = 16;
constexpr std::size_t kAlign = 128;

int padded(int count, int unit) { return (count + unit - 1) / unit * unit; }

std::uint16_t to_bf16(float value) {  // weights are finite
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// To nearest, ties to even. Beyond the largest half: the largest, so that products stay numbers.
std::uint16_t to_fp16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (!(magnitude < 65504.0f)) return sign | 0x7bff;
  if (magnitude < 6.103515625e-5f) {
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 16777216.0f)));
  }
  bits &= 0x7fffffffu;
  return static_cast<std::uint16_t>(sign | (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13);
}

class Packer {
 public:
  explicit Packer(Precision precision) : precision_(precision) {}

  std::uint32_t align() {
    bytes.resize((bytes.size() + kAlign - 1) / kAlign * kAlign);
    if (bytes.size() > 0xffffffffu) {
      throw Error(ErrorCode::kModelFile, "the model's packed weights exceed 4 GiB: use a smaller network");
    }
    return static_cast<std::uint32_t>(bytes.size());
  }

  template <typename T>
  void add(T value) {
    const std::size_t at = bytes.size();
    bytes.resize(at + sizeof(T));
    std::memcpy(bytes.data() + at, &value, sizeof(T));
  }

  // rows [row0, row0 + rows) of m, each padded with zeros.
  std::uint32_t add_rows(const Dense& m, int row0, int rows, int columns) {
    const std::uint32_t at = align();
    for (int r = row0; r < row0 + rows; ++r) {
      for (int c = 0; c < columns; ++c) add(c < m.cols ? static_cast<float>(m(r, c)) : 0.0f);
    }
    return at;
  }

  std::uint32_t add_vector(const std::vector<double>& values, int count) {
    const std::uint32_t at = align();
    for (int i = 0; i < count; ++i) {
      add(i < static_cast<int>(values.size()) ? static_cast<float>(values[static_cast<std::size_t>(i)]) : 0.0f);
    }
    return at;
  }

  // Weights value(in, out), inputs and outputs multiples of 16.
  template <typename Value>
  void add_weights(int inputs, int outputs, Value value) {
    if (precision_ == Precision::kFloat32) {
      for (int i = 0; i < inputs; ++i) {
        for (int o = 0; o < outputs; ++o) add(static_cast<float>(value(i, o)));
      }
      return;
    }
    for (int o = 0; o < outputs; o += kTile) {
      for (int i = 0; i < inputs; i += kTile) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int r = 0; r < 8; ++r) {  // two values in each of four registers
            const int row = lane / 4 + 8 * (r / 2 % 2), k = 2 * (lane % 4) + r % 2 + 8 * (r / 4);
            const auto v = static_cast<float>(value(i + k, o + row));
            add(precision_ == Precision::kFloat16 ? to_fp16(v) : to_bf16(v));
          }
        }
      }
    }
  }

  std::vector<unsigned char> bytes;

 private:
  const Precision precision_;
};

class Builder {
 public:
  Builder(const ModelSpec& spec, const Tensors& tensors, Precision precision)
      : spec_(spec), tensors_(tensors), folded_(fold(spec, tensors, Folding::kUniform)), packer_(precision) {
    const NetworkConfig& config = spec.config;
    net_.blob = nullptr;
    net_.joints = spec.joints();
    net_.channels = config.input_channels;
    net_.rank = folded_.rank;
    net_.hops = static_cast<int>(folded_.hops.size());
    net_.layers = config.layers;
    net_.width = config.width;
    net_.width_ld = padded(config.width, kTile);
    net_.heads = config.heads;
    net_.head_ld = padded(config.head_dim, kTile);
    net_.slots = precision == Precision::kFloat32 ? 1 : config.heads % 4 == 0 ? 4 : config.heads % 2 == 0 ? 2 : 1;
    net_.hidden_tiles = (padded(config.mlp_width(), kTile) / kTile + net_.slots - 1) / net_.slots;
    net_.se_width = config.se_width();
    net_.mask_embedding = config.mask_embedding ? 1 : 0;
    net_.residual = config.residual ? 1 : 0;
    net_.eps = config.layer_norm_eps;
  }

  DeviceBlob run() {
    net_.shares = packer_.align();
    for (int l = 0; l < net_.layers; ++l) {
      for (int s = 0; s < net_.slots; ++s) add_share(folded_.layers[static_cast<std::size_t>(l)], s);
    }
    add_tables();
    net_.embed = packer_.add_rows(folded_.embed, 0, net_.rank, net_.width_ld);
    net_.out_bias = add_layer_biases([](const FoldedLayer& layer) { return &layer.out_bias; });
    net_.fc2_bias = add_layer_biases([](const FoldedLayer& layer) { return &layer.fc2_bias; });
    net_.se1 = packer_.add_rows(transposed(folded_.se1), 0, net_.se_width, net_.width_ld);
    net_.se1_bias = packer_.add_vector(folded_.se1_bias, net_.se_width);
    net_.se2 = packer_.add_rows(folded_.se2, 0, net_.se_width, net_.width_ld);
    net_.se2_bias = packer_.add_vector(folded_.se2_bias, net_.width_ld);
    Dense head(spec_.config.outputs(), net_.width);
    const std::vector<float>&weight = tensors_.at("head.out.weight").values,
          &bias = tensors_.at("head.out.bias").values;
    head.values.assign(weight.begin(), weight.end());
    net_.head = packer_.add_rows(head, 0, head.rows, net_.width_ld);
    net_.head_bias = packer_.add_vector({bias.begin(), bias.end()}, 4);
    packer_.align();
    return {net_, std::move(packer_.bytes)};
  }

 private:
  // Row of a projection's matrix for input i of Y as the kernels have it: each hop padded to width_ld. -1: padding.
  int row_of(int i) const {
    const int hop = i / net_.width_ld, channel = i % net_.width_ld;
    return channel < net_.width ? hop * net_.width + channel : -1;
  }

  void add_share(const FoldedLayer& layer, int slot) {
    const int inputs = net_.hops * net_.width_ld, rounds = net_.heads / net_.slots, head_ld = net_.head_ld;
    const std::uint32_t start = packer_.align();
    const auto head = [&](int round) -> const FoldedHead& {
      return layer.heads[static_cast<std::size_t>(round * net_.slots + slot)];
    };
    // Output o of a head's queries and keys, from their two matrices.
    const auto query_or_key = [&](int round, int row, int o) {
      const Dense& m = o < head_ld ? head(round).query : head(round).key;
      const int column = o % head_ld;
      return row >= 0 && column < m.cols ? m(row, column) : 0.0;
    };
    const auto value_at = [&](int round, int row, int o) {
      return row >= 0 && o < net_.width ? head(round).value(row, o) : 0.0;
    };
    net_.qk = packer_.align() - start;
    for (int r = 0; r < rounds; ++r) {
      packer_.add_weights(inputs, 2 * head_ld, [&](int i, int o) { return query_or_key(r, row_of(i), o); });
    }
    net_.value = packer_.align() - start;
    for (int r = 0; r < rounds; ++r) {
      packer_.add_weights(inputs, net_.width_ld, [&](int i, int o) { return value_at(r, row_of(i), o); });
    }
    const int hidden = net_.hidden_tiles * kTile, first = slot * hidden;
    net_.fc1 = packer_.align() - start;
    packer_.add_weights(net_.width_ld, hidden, [&](int i, int o) {
      return i < layer.fc1.rows && first + o < layer.fc1.cols ? layer.fc1(i, first + o) : 0.0;
    });
    net_.fc2 = packer_.align() - start;
    packer_.add_weights(hidden, net_.width_ld, [&](int i, int o) {
      return first + i < layer.fc2.rows && o < layer.fc2.cols ? layer.fc2(first + i, o) : 0.0;
    });
    const int biases = net_.hops * net_.width;  // rows of the projections that stand for b W_j
    net_.qk_bias = packer_.align() - start;
    for (int r = 0; r < rounds; ++r) {
      for (int j = 0; j < net_.hops; ++j) {
        for (int o = 0; o < 2 * head_ld; ++o) packer_.add(static_cast<float>(query_or_key(r, biases + j, o)));
      }
    }
    net_.value_bias = packer_.align() - start;
    for (int r = 0; r < rounds; ++r) {
      for (int j = 0; j < net_.hops; ++j) {
        for (int o = 0; o < net_.width_ld; ++o) packer_.add(static_cast<float>(value_at(r, biases + j, o)));
      }
    }
    net_.fc1_bias = packer_.align() - start;
    for (int i = first; i < first + hidden; ++i) {
      const auto at = static_cast<std::size_t>(i);
      packer_.add(at < layer.fc1_bias.size() ? static_cast<float>(layer.fc1_bias[at]) : 0.0f);
    }
    net_.share_bytes = packer_.align() - start;
  }

  void add_tables() {
    std::vector<std::int32_t> start = {0}, index;
    std::vector<float> value, sums;
    for (const Dense& hop : folded_.hops) {
      for (int i = 0; i < kernels::kMaxJoints; ++i) {
        double sum = 0.0;
        for (int m = 0; i < hop.rows && m < hop.cols; ++m) {
          sum += hop(i, m);
          if (hop(i, m) == 0.0) continue;
          index.push_back(m);
          value.push_back(static_cast<float>(hop(i, m)));
        }
        sums.push_back(static_cast<float>(sum));
        if (i < hop.rows) start.push_back(static_cast<std::int32_t>(index.size()));
      }
    }
    net_.hop_entries = static_cast<std::uint32_t>(index.size());
    net_.tables = packer_.align();
    for (const std::int32_t v : start) packer_.add(v);
    for (const std::int32_t v : index) packer_.add(v);
    for (const float v : value) packer_.add(v);
    for (const float v : sums) packer_.add(v);
  }

  template <typename Pick>
  std::uint32_t add_layer_biases(Pick pick) {
    std::vector<double> all;
    for (const FoldedLayer& layer : folded_.layers) {
      const std::vector<double>& bias = *pick(layer);
      all.insert(all.end(), bias.begin(), bias.end());
      all.resize(all.size() + static_cast<std::size_t>(net_.width_ld - net_.width), 0.0);
    }
    return packer_.add_vector(all, net_.layers * net_.width_ld);
  }

  const ModelSpec& spec_;
  const Tensors& tensors_;
  const FoldedNetwork folded_;
  Packer packer_;
  kernels::Network net_{};
};

}  // namespace

DeviceBlob pack_for_device(const ModelSpec& spec, const Tensors& tensors, Precision precision) {
  return Builder(spec, tensors, precision).run();
}

kernels::LineRules rules_of(const LineSettings& settings) {
  kernels::LineRules rules;
  rules.min_visible = settings.min_visible;
  rules.max_masked = settings.max_masked;
  rules.paper_frame = settings.frame == Frame::kPaper ? 1 : 0;
  rules.root = settings.root;
  rules.axis = settings.axis;
  rules.refine_all = settings.refine_all ? 1 : 0;
  rules.zero_masked = settings.zero_masked ? 1 : 0;
  rules.frame_width = static_cast<float>(settings.frame_width);
  rules.frame_height = static_cast<float>(settings.frame_height);
  rules.fusion = static_cast<float>(settings.fusion);
  rules.confidence_divisor = static_cast<float>(settings.confidence_divisor);
  // x and y of the paper's frame have units of their own: their geometric mean.
  const double pixels = rules.paper_frame ? std::sqrt(settings.frame_width * settings.frame_height) : 1.0;
  rules.std_scale = static_cast<float>(pixels * settings.std_scale);
  return rules;
}

}  // namespace port
