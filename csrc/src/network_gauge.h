// SPDX-License-Identifier: Apache-2.0
// Small dense matrices in double, and the gauge that makes part of a projection the identity.
// Test: csrc/tests/test_network.cpp.
#pragma once

#include <cstddef>
#include <vector>

namespace port {

struct Dense {  // row-major
  int rows = 0;
  int cols = 0;
  std::vector<double> values;

  Dense() = default;
  Dense(int rows_, int cols_)
      : rows(rows_), cols(cols_), values(static_cast<std::size_t>(rows_) * static_cast<std::size_t>(cols_), 0.0) {}
  double* row(int r) { return values.data() + static_cast<std::ptrdiff_t>(r) * cols; }
  const double* row(int r) const { return values.data() + static_cast<std::ptrdiff_t>(r) * cols; }
  double& operator()(int r, int c) { return row(r)[c]; }
  double operator()(int r, int c) const { return row(r)[c]; }
};

Dense multiply(const Dense& a, const Dense& b);
Dense transposed(const Dense& a);
Dense rows_of(const Dense& a, const std::vector<int>& rows);

// Rows `select` of w [n][r] such that w = G w[select] with no entry of G above about 1: the rows of (locally) maximal
// volume among the first `candidates`. `rest` are the other rows, and `gauge` [n - r][r] their G. False if w has no
// such r rows (rank below r).
bool choose_gauge(const Dense& w, int candidates, std::vector<int>* select, std::vector<int>* rest, Dense* gauge);

}  // namespace port
