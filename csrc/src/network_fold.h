// SPDX-License-Identifier: Apache-2.0
// The exact algebra that makes PORT cheaper before it runs, all in double: projections folded into each other, and the
// gauge that makes part of the query projection the identity. Test: csrc/tests/test_network.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/plan.h"
#include "model.h"

namespace port {

struct Dense {  // row-major
  int rows = 0;
  int cols = 0;
  std::vector<double> values;

  Dense() = default;
  Dense(int rows_, int cols_) : rows(rows_), cols(cols_), values(at(rows_, 0), 0.0) {}
  std::size_t at(int r, int c) const { return static_cast<std::size_t>(r) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(c); }
  double& operator()(int r, int c) { return values[at(r, c)]; }
  double operator()(int r, int c) const { return values[at(r, c)]; }
};

Dense multiply(const Dense& a, const Dense& b);
Dense transposed(const Dense& a);

struct FoldedHead {
  Dense key;                 // [y_cols][score_width]
  Dense query;               // [rest or y_cols][score_width]; no rows: the queries are columns of Y
  std::vector<int> select;   // [score_width] or empty
  std::vector<int> rest;     // rows of `query` in Y, or empty: all
  Dense value;               // [y_cols][D or head_dim]; no rows where values are shared
};

struct FoldedLayer {
  int width = 0;
  int y_cols = 0;
  int score_width = 0;
  Values values = Values::kDirect;
  std::vector<FoldedHead> heads;
  std::vector<Dense> out;    // one [y_cols or head_dim][D] per head; empty where values are direct
  std::vector<double> out_bias;
  Dense fc1, fc2;
  std::vector<double> fc1_bias, fc2_bias;
};

struct FoldedNetwork {
  std::vector<Dense> hops;   // H_j [N][N]: Ã^k, or with shared weights their mean alone
  int rank = 0;              // columns of the embedding's factors
  bool low_rank_first = false;
  Dense embed;               // [rank][D]
  std::vector<FoldedLayer> layers;
  Dense se1, se2;            // se2 and its bias times -log2(e)
  std::vector<double> se1_bias, se2_bias;
};

FoldedNetwork fold(const ModelSpec& spec, const Tensors& tensors);

// Rows `select` of w [n][r] such that w = G w[select] with no entry of G above about 1: the rows of (locally) maximal
// volume among the first `candidates`. `rest` are the other rows, and `gauge` [n - r][r] their G. False if w has no such
// r rows (rank below r).
bool choose_gauge(const Dense& w, int candidates, std::vector<int>* select, std::vector<int>* rest, Dense* gauge);

}  // namespace port
