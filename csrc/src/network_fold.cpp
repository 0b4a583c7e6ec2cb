// SPDX-License-Identifier: Apache-2.0
// Folds PORT (eqs. 4-11) into fewer and smaller products; network_fold.h says what comes out.
//
// With LN(z) = x g + b and Y = [H_1 x, ..., H_J x, H_1 1, ..., H_J 1], every projection of a layer is Y W, where the
// rows of W are g W_j and, below them, b W_j: LayerNorm's affine costs J columns. Then, per head,
//   scores  Y W_Q W_K^T Y^T is unchanged by W_Q -> W_Q R, W_K -> W_K R^-T. R = (W_Q)_S^-1 turns the rows S of W_Q into
//           the identity, and W_K R^-T = W_K (W_Q)_S^T needs no inverse. Where Y is narrower than a head,
//           Q = Y and K = Y W_K W_Q^T instead.
//   values  P Y W_V W_O: W_V W_O is one matrix; or P Y is taken first. Whichever needs the fewest multiplications.
// In the first layer x is (U / sigma) W_c with U the few columns of the embedding's factors, sigma LayerNorm's deviation
// and W_c the embedding centred over its D channels: W_c goes into W, and Y has J (rank + 1) columns.
#include "network_fold.h"

#include <cmath>
#include <cstddef>
#include <utility>

namespace port {

namespace {

constexpr double kLog2e = 1.4426950408889634;

Dense dense(const Tensor& tensor, int rows, int cols, std::size_t offset = 0) {
  Dense m(rows, cols);
  for (std::size_t i = 0; i < m.values.size(); ++i) m.values[i] = tensor.values[offset + i];
  return m;
}

std::vector<double> vector_of(const Tensor& tensor) { return {tensor.values.begin(), tensor.values.end()}; }

// Inverse by Gauss-Jordan with row pivoting; false if singular.
bool invert(Dense a, Dense* inverse) {
  const int n = a.rows;
  Dense b(n, n);
  for (int i = 0; i < n; ++i) b(i, i) = 1.0;
  for (int c = 0; c < n; ++c) {
    int best = c;
    for (int r = c + 1; r < n; ++r) {
      if (std::fabs(a(r, c)) > std::fabs(a(best, c))) best = r;
    }
    if (!(std::fabs(a(best, c)) > 0.0)) return false;
    for (int k = 0; k < n; ++k) {
      std::swap(a(c, k), a(best, k));
      std::swap(b(c, k), b(best, k));
    }
    const double scale = 1.0 / a(c, c);
    for (int k = 0; k < n; ++k) a(c, k) *= scale, b(c, k) *= scale;
    for (int r = 0; r < n; ++r) {
      const double factor = a(r, c);
      if (r == c || factor == 0.0) continue;
      for (int k = 0; k < n; ++k) a(r, k) -= factor * a(c, k), b(r, k) -= factor * b(c, k);
    }
  }
  *inverse = std::move(b);
  return true;
}

// The first rows S: those of the pivots of Gaussian elimination with full pivoting.
bool pivot_rows(Dense a, int candidates, std::vector<int>* rows) {
  std::vector<bool> taken(a.rows, false);
  double first = 0.0;
  for (int step = 0; step < a.cols; ++step) {
    int row = -1, col = -1;
    double best = 0.0;
    for (int r = 0; r < candidates; ++r) {
      for (int c = 0; c < a.cols && !taken[r]; ++c) {
        if (std::fabs(a(r, c)) > best) best = std::fabs(a(r, c)), row = r, col = c;
      }
    }
    if (step == 0) first = best;
    if (!(best > 1e-9 * first)) return false;
    taken[row] = true;
    rows->push_back(row);
    for (int r = 0; r < candidates; ++r) {
      if (taken[r]) continue;
      const double factor = a(r, col) / a(row, col);
      for (int c = 0; c < a.cols; ++c) a(r, c) -= factor * a(row, c);
      a(r, col) = 0.0;
    }
  }
  return true;
}

Dense rows_of(const Dense& a, const std::vector<int>& rows) {
  Dense m(static_cast<int>(rows.size()), a.cols);
  for (int r = 0; r < m.rows; ++r) {
    for (int c = 0; c < a.cols; ++c) m(r, c) = a(rows[r], c);
  }
  return m;
}

}  // namespace

Dense multiply(const Dense& a, const Dense& b) {
  Dense m(a.rows, b.cols);
  for (int i = 0; i < a.rows; ++i) {
    for (int k = 0; k < a.cols; ++k) {
      const double x = a(i, k);
      if (x == 0.0) continue;
      const double* from = &b.values[static_cast<std::size_t>(k) * b.cols];
      double* to = &m.values[static_cast<std::size_t>(i) * b.cols];
      for (int j = 0; j < b.cols; ++j) to[j] += x * from[j];
    }
  }
  return m;
}

Dense transposed(const Dense& a) {
  Dense m(a.cols, a.rows);
  for (int i = 0; i < a.rows; ++i) {
    for (int j = 0; j < a.cols; ++j) m(j, i) = a(i, j);
  }
  return m;
}

bool choose_gauge(const Dense& w, int candidates, std::vector<int>* select, std::vector<int>* rest, Dense* gauge) {
  const int r = w.cols;
  select->clear();
  rest->clear();
  if (candidates < r || !pivot_rows(w, candidates, select)) return false;
  Dense inverse;
  if (!invert(rows_of(w, *select), &inverse)) return false;
  Dense g = multiply(w, inverse);  // [n][r], identity at the selected rows
  for (int swap = 0; swap < 16 * r; ++swap) {
    int row = -1, col = -1;
    double best = 1.05;  // each swap multiplies the volume by this entry, so that they come to an end
    for (int i = 0; i < candidates; ++i) {
      for (int j = 0; j < r; ++j) {
        if (std::fabs(g(i, j)) > best) best = std::fabs(g(i, j)), row = i, col = j;
      }
    }
    if (row < 0) break;
    std::vector<double> direction(r);
    for (int j = 0; j < r; ++j) direction[j] = (g(row, j) - (j == col ? 1.0 : 0.0)) / g(row, col);
    for (int i = 0; i < g.rows; ++i) {
      const double factor = g(i, col);
      for (int j = 0; j < r; ++j) g(i, j) -= factor * direction[j];
    }
    (*select)[col] = row;
  }
  if (!invert(rows_of(w, *select), &inverse)) return false;
  std::vector<bool> taken(w.rows, false);
  for (int s : *select) taken[s] = true;
  for (int i = 0; i < w.rows; ++i) {
    if (!taken[i]) rest->push_back(i);
  }
  *gauge = multiply(rows_of(w, *rest), inverse);
  for (int i = 0; i < gauge->rows; ++i) {
    for (int j = 0; j < r; ++j) {
      if ((*rest)[i] < candidates && !(std::fabs((*gauge)(i, j)) < 2.0)) return false;
    }
  }
  return true;
}

namespace {

class Folder {
 public:
  Folder(const ModelSpec& spec, const Tensors& tensors) : spec_(spec), config_(spec.config), tensors_(tensors) {}

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
    const Tensor& embed = tensors_.at("embed.weight");
    for (int r = 0; r < hops_ * channels; ++r) {
      for (int c = 0; c < d; ++c) net.embed(r, c) = hop_scale_ * embed.values[static_cast<std::size_t>(r) * d + c];
    }
    if (config_.mask_embedding) {
      for (int c = 0; c < d; ++c) net.embed(net.rank - 1, c) = tensors_.at("mask_embedding").values[c];
    }
    Dense centred = net.embed;
    for (int r = 0; r < net.rank; ++r) {
      double mean = 0.0;
      for (int c = 0; c < d; ++c) mean += centred(r, c) / d;
      for (int c = 0; c < d; ++c) centred(r, c) -= mean;
    }
    net.low_rank_first = net.rank <= d / 2;
    Dense identity(d, d);
    for (int c = 0; c < d; ++c) identity(c, c) = 1.0;
    for (int l = 0; l < config_.layers; ++l) {
      net.layers.push_back(layer("layers." + std::to_string(l) + ".", l == 0 && net.low_rank_first ? centred : identity));
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
    const Tensor& weight = tensors_.at(prefix + name + ".weight");
    const std::vector<float>& gain = tensors_.at(prefix + "norm1.weight").values;
    const std::vector<float>& bias = tensors_.at(prefix + "norm1.bias").values;
    Dense w(hops_ * (basis.rows + 1), dh);
    for (int j = 0; j < hops_; ++j) {
      Dense scaled(d, dh);
      for (int i = 0; i < d; ++i) {
        const float* from = &weight.values[(static_cast<std::size_t>(j) * d + i) * inner + head * dh];
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

  void fold_scores(const Dense& query, const Dense& key, bool narrow, FoldedHead* head) const {
    if (narrow) {
      for (int i = 0; i < query.rows; ++i) head->select.push_back(i);
      head->key = multiply(key, transposed(query));
      return;
    }
    Dense gauge;
    if (choose_gauge(query, query.rows - hops_, &head->select, &head->rest, &gauge)) {
      head->key = multiply(key, transposed(rows_of(query, head->select)));
      head->query = std::move(gauge);
      return;
    }
    head->select.clear();
    head->rest.clear();
    head->key = key;
    head->query = query;
  }

  FoldedLayer layer(const std::string& prefix, const Dense& basis) const {
    const int n = spec_.joints(), d = config_.width, dh = config_.head_dim;
    const double scale = kLog2e / std::sqrt(config_.attention_scale_width ? d : dh);
    FoldedLayer out;
    out.width = basis.rows;
    out.y_cols = hops_ * (basis.rows + 1);
    const long y = out.y_cols;
    const bool gauged = dh <= y - hops_;
    const bool narrow = y * y + n * y < y * dh + (gauged ? y - dh : y) * dh + n * dh;
    out.score_width = narrow ? out.y_cols : dh;
    const long direct = y * d + n * d, concat = y * dh + n * dh + dh * d, shared = n * y + y * d;
    out.values = shared < direct && shared < concat ? Values::kShared
                 : direct <= concat                 ? Values::kDirect
                                                    : Values::kConcat;
    const Tensor& out_weight = tensors_.at(prefix + "out.weight");
    for (int h = 0; h < config_.heads; ++h) {
      FoldedHead head;
      Dense key = projection(prefix, "k", h, basis);
      for (double& v : key.values) v *= scale;
      fold_scores(projection(prefix, "q", h, basis), key, narrow, &head);
      Dense value = projection(prefix, "v", h, basis);
      Dense mix(dh, d);  // W_O of this head
      for (int i = 0; i < dh; ++i) {
        for (int c = 0; c < d; ++c) {
          mix(i, c) = out_weight.values[static_cast<std::size_t>(c) * config_.inner() + h * dh + i];
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
    const std::vector<float>& gain = tensors_.at(prefix + "norm2.weight").values;
    const std::vector<float>& bias = tensors_.at(prefix + "norm2.bias").values;
    for (int i = 0; i < d; ++i) {
      for (int c = 0; c < hidden; ++c) {
        out.fc1_bias[c] += bias[i] * out.fc1(i, c);
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
  int hops_ = 0;
  double hop_scale_ = 1.0;
};

}  // namespace

FoldedNetwork fold(const ModelSpec& spec, const Tensors& tensors) { return Folder(spec, tensors).run(); }

}  // namespace port
