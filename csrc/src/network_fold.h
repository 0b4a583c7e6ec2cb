// SPDX-License-Identifier: Apache-2.0
// The exact algebra that makes PORT cheaper before it runs, all in double: projections folded into each other.
// Test: csrc/tests/test_network.cpp.
#pragma once

#include <vector>

#include "kernels/plan.h"
#include "model.h"
#include "network_gauge.h"

namespace port {

struct FoldedHead {
  Dense key;                // [y_cols][score_width]
  Dense query;              // [rest or y_cols][score_width]; no rows: the queries are columns of Y
  std::vector<int> select;  // [score_width] or empty
  std::vector<int> rest;    // rows of `query` in Y, or empty: all
  Dense value;              // [y_cols][D or head_dim]; no rows where values are shared
};

struct FoldedLayer {
  int width = 0;
  int y_cols = 0;
  int score_width = 0;
  Values values = Values::kDirect;
  std::vector<FoldedHead> heads;
  std::vector<Dense> out;  // one [y_cols or head_dim][D] per head; empty where values are direct
  std::vector<double> out_bias;
  Dense fc1, fc2;
  std::vector<double> fc1_bias, fc2_bias;
};

struct FoldedNetwork {
  std::vector<Dense> hops;  // H_j [N][N]: Ã^k, or with shared weights their mean alone
  int rank = 0;             // columns of the embedding's factors
  bool low_rank_first = false;
  Dense embed;  // [rank][D]
  std::vector<FoldedLayer> layers;
  Dense se1, se2;  // se2 and its bias times -log2(e)
  std::vector<double> se1_bias, se2_bias;
};

enum class Folding {
  kExact,    // for products in fp32
  kRounded,  // in bf16 the gauge is left out: it makes queries and keys longer vectors than they need be, and rounding
             // them then costs three times the error for 4 % of the time
  kUniform,  // for GPUs: every layer and head alike, queries, keys and values (kDirect) each one product with all of Y
};

FoldedNetwork fold(const ModelSpec& spec, const Tensors& tensors, Folding folding);

}  // namespace port
