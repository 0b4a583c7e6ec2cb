// SPDX-License-Identifier: Apache-2.0
// Folds PORT (eqs. 4-11) into fewer and smaller products; network_fold.h says what comes out.
//
// With LN(z) = x g + b and Y = [H_1 x, ..., H_J x, H_1 1, ..., H_J 1], every projection of a layer is Y W, where the
// rows of W are g W_j and, below them, b W_j: LayerNorm's affine costs J columns. Then, per head,
//   scores  Y W_Q W_K^T Y^T is unchanged by W_Q -> W_Q R, W_K -> W_K R^-T. R = (W_Q)_S^-1 turns the rows S of W_Q into
//           the identity, and W_K R^-T = W_K (W_Q)_S^T needs no inverse. Where Y is narrower than a head,
//           Q = Y and K = Y W_K W_Q^T instead.
//   values  P Y W_V W_O: W_V W_O is one matrix; or P Y is taken first. Whichever needs the fewest multiplications.
// In the first layer x is (U / sigma) W_c with U the few columns of the embedding's factors, sigma LayerNorm's
// deviation and W_c the embedding centred over its D channels: W_c goes into W, and Y has J (rank + 1) columns.
#include "network_fold.h"

#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

namespace port {

namespace {

constexpr double kLog2e = 1.4426950408889634;

Dense dense(const Tensor& tensor, int rows, int cols) {
  Dense m(rows, cols);
  m.values.assign(tensor.values.begin(), tensor.values.end());
  return m;
}

std::vector<double> vector_of(const Tensor& tensor) { return {tensor.values.begin(), tensor.values.end()}; }

class Folder {
 public:
  Folder(const ModelSpec& spec, const Tensors& tensors, Folding folding)
      : spec_(spec), config_(spec.config), tensors_(tensors), folding_(folding) {}

  FoldedNetwork run() {
    FoldedNetwork net;
    const int n = spec_.joints(), d = config_.width;
    const double count = static_cast<double>(config_.hops.size());
    if (config_.share_hop_weights) net.hops.emplace_back(n, n);
    for (int k : config_.hops) {
      const std::vector<double> power = hop_matrix(spec_, k);
      if (!config_.share_hop_weights) net.hops.emplace_back(n, n);
      for (std::size_t i = 0; i < power.size(); ++i) {
        net.hops.back().values[i] += config_.share_hop_weights ? power[i] / count : power[i];
      }
    }
    hops_ = static_cast<int>(net.hops.size());
    hop_scale_ = config_.share_hop_weights ? 1.0 : 1.0 / count;

    const int channels = config_.input_channels;
    net.rank = hops_ * channels + (config_.mask_embedding ? 1 : 0);
    net.embed = Dense(net.rank, d);
    const float* embed = tensors_.at("embed.weight").values.data();
    for (int r = 0; r < hops_ * channels; ++r) {
      for (int c = 0; c < d; ++c) net.embed(r, c) = hop_scale_ * embed[r * d + c];
    }
    if (config_.mask_embedding) {
      const float* masked = tensors_.at("mask_embedding").values.data();
      for (int c = 0; c < d; ++c) net.embed(net.rank - 1, c) = masked[c];
    }
    Dense centred = net.embed;
    for (int r = 0; r < net.rank; ++r) {
      double mean = 0.0;
      for (int c = 0; c < d; ++c) mean += centred(r, c) / d;
      for (int c = 0; c < d; ++c) centred(r, c) -= mean;
    }
    net.low_rank_first = folding_ != Folding::kUniform && net.rank <= d / 2;
    Dense identity(d, d);
    for (int c = 0; c < d; ++c) identity(c, c) = 1.0;
    for (int l = 0; l < config_.layers; ++l) {
      const bool low_rank = l == 0 && net.low_rank_first;
      net.layers.push_back(layer("layers." + std::to_string(l) + ".", low_rank ? centred : identity,
                                 folding_ == Folding::kExact || low_rank));
    }
    net.se1 = transposed(dense(tensors_.at("head.se1.weight"), config_.se_width(), d));
    net.se2 = transposed(dense(tensors_.at("head.se2.weight"), d, config_.se_width()));
    net.se1_bias = vector_of(tensors_.at("head.se1.bias"));
    net.se2_bias = vector_of(tensors_.at("head.se2.bias"));
    for (double& v : net.se2.values) v *= -kLog2e;
    for (double& v : net.se2_bias) v *= -kLog2e;
    return net;
  }

 private:
  // W of the projection `name` of one head on Y: basis g W_j for every hop, then b W_j. [y_cols][head_dim]
  Dense projection(const std::string& prefix, const char* name, int head, const Dense& basis) const {
    const int d = config_.width, dh = config_.head_dim, inner = config_.inner();
    const float* weight = tensors_.at(prefix + name + ".weight").values.data() + head * dh;
    const float* gain = tensors_.at(prefix + "norm1.weight").values.data();
    const float* bias = tensors_.at(prefix + "norm1.bias").values.data();
    Dense w(hops_ * (basis.rows + 1), dh);
    for (int j = 0; j < hops_; ++j) {
      Dense scaled(d, dh);
      for (int i = 0; i < d; ++i) {
        const float* from = weight + static_cast<std::ptrdiff_t>(j * d + i) * inner;
        for (int c = 0; c < dh; ++c) {
          scaled(i, c) = hop_scale_ * gain[i] * from[c];
          w(hops_ * basis.rows + j, c) += hop_scale_ * bias[i] * from[c];
        }
      }
      const Dense block = multiply(basis, scaled);
      for (int i = 0; i < basis.rows; ++i) {
        for (int c = 0; c < dh; ++c) w(j * basis.rows + i, c) = block(i, c);
      }
    }
    return w;
  }

  void fold_scores(const Dense& query, const Dense& key, bool narrow, bool gauged, FoldedHead* head) const {
    if (narrow) {
      for (int i = 0; i < query.rows; ++i) head->select.push_back(i);
      head->key = multiply(key, transposed(query));
      return;
    }
    Dense gauge;
    if (gauged && choose_gauge(query, query.rows - hops_, &head->select, &head->rest, &gauge)) {
      head->key = multiply(key, transposed(rows_of(query, head->select)));
      head->query = std::move(gauge);
      return;
    }
    head->select.clear();
    head->rest.clear();
    head->key = key;
    head->query = query;
  }

  FoldedLayer layer(const std::string& prefix, const Dense& basis, bool gauge) const {
    const int n = spec_.joints(), d = config_.width, dh = config_.head_dim;
    const double scale = kLog2e / std::sqrt(config_.attention_scale_width ? d : dh);
    FoldedLayer out;
    out.width = basis.rows;
    out.y_cols = hops_ * (basis.rows + 1);
    const long y = out.y_cols;
    const bool gauged = gauge && dh <= y - hops_;
    const bool uniform = folding_ == Folding::kUniform;
    const bool narrow = !uniform && y * y + n * y < y * dh + (gauged ? y - dh : y) * dh + n * dh;
    out.score_width = narrow ? out.y_cols : dh;
    const long direct = y * d + n * d, concat = y * dh + n * dh + dh * d, shared = n * y + y * d;
    out.values = uniform                              ? Values::kDirect
                 : shared < direct && shared < concat ? Values::kShared
                 : direct <= concat                   ? Values::kDirect
                                                      : Values::kConcat;
    const float* out_weight = tensors_.at(prefix + "out.weight").values.data();
    for (int h = 0; h < config_.heads; ++h) {
      FoldedHead head;
      Dense key = projection(prefix, "k", h, basis);
      for (double& v : key.values) v *= scale;
      fold_scores(projection(prefix, "q", h, basis), key, narrow, gauged, &head);
      Dense value = projection(prefix, "v", h, basis);
      Dense mix(dh, d);  // W_O of this head
      for (int i = 0; i < dh; ++i) {
        for (int c = 0; c < d; ++c) {
          mix(i, c) = out_weight[static_cast<std::ptrdiff_t>(c) * config_.inner() + h * dh + i];
        }
      }
      if (out.values == Values::kDirect) head.value = multiply(value, mix);
      if (out.values == Values::kShared) out.out.push_back(multiply(value, mix));
      if (out.values == Values::kConcat) {
        head.value = std::move(value);
        out.out.push_back(std::move(mix));
      }
      out.heads.push_back(std::move(head));
    }
    out.out_bias = vector_of(tensors_.at(prefix + "out.bias"));

    const int hidden = config_.mlp_width();
    out.fc1 = transposed(dense(tensors_.at(prefix + "fc1.weight"), hidden, d));
    out.fc1_bias = vector_of(tensors_.at(prefix + "fc1.bias"));
    const float* gain = tensors_.at(prefix + "norm2.weight").values.data();
    const float* bias = tensors_.at(prefix + "norm2.bias").values.data();
    for (int i = 0; i < d; ++i) {
      for (int c = 0; c < hidden; ++c) {
        out.fc1_bias.data()[c] += bias[i] * out.fc1(i, c);
        out.fc1(i, c) *= gain[i];
      }
    }
    out.fc2 = transposed(dense(tensors_.at(prefix + "fc2.weight"), d, hidden));
    out.fc2_bias = vector_of(tensors_.at(prefix + "fc2.bias"));
    return out;
  }

  const ModelSpec& spec_;
  const NetworkConfig& config_;
  const Tensors& tensors_;
  const Folding folding_;
  int hops_ = 0;
  double hop_scale_ = 1.0;
};

}  // namespace

FoldedNetwork fold(const ModelSpec& spec, const Tensors& tensors, Folding folding) {
  return Folder(spec, tensors, folding).run();
}

}  // namespace port
