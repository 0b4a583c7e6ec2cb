// SPDX-License-Identifier: Apache-2.0
// Rows of maximal volume by Gauss-Jordan elimination with full pivoting, then by swaps. network_gauge.h says what for.
#include "network_gauge.h"

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace port {

namespace {

constexpr double kLargest = 1.05;  // each swap multiplies the volume by at least this, so that they come to an end
constexpr double kRankTolerance = 1e-9;

// a -= factor * b
void subtract(double factor, const double* b, int n, double* a) {
  for (int i = 0; i < n; ++i) a[i] -= factor * b[i];
}

// Right-multiplies g by the matrix that turns row `pivot` into the unit vector of column `col`.
void make_unit(Dense* g, int pivot, int col) {
  std::vector<double> direction(g->row(pivot), g->row(pivot) + g->cols);
  const double scale = 1.0 / direction[static_cast<std::size_t>(col)];
  for (double& v : direction) v *= scale;
  direction[static_cast<std::size_t>(col)] = 0.0;
  for (int i = 0; i < g->rows; ++i) {
    double* row = g->row(i);
    subtract(row[col], direction.data(), g->cols, row);
    row[col] *= scale;
  }
}

struct Place {
  int row = -1;
  int col = -1;
};

double largest_of(const double* row, int count) {
  double most[4] = {0.0, 0.0, 0.0, 0.0};  // four, so that one comparison does not wait for the last
  for (int i = 0; i < count; ++i) most[i % 4] = std::fabs(row[i]) > most[i % 4] ? std::fabs(row[i]) : most[i % 4];
  return std::fmax(std::fmax(most[0], most[1]), std::fmax(most[2], most[3]));
}

// The largest |entry| above `least` in rows that are not taken, from column `first` on.
Place largest(const Dense& g, int rows, int first, double least, const std::vector<char>& taken) {
  Place best;
  for (int i = 0; i < rows; ++i) {
    if (taken[static_cast<std::size_t>(i)]) continue;
    const double most = largest_of(g.row(i) + first, g.cols - first);
    if (most > least) least = most, best.row = i;
  }
  for (int j = first; best.row >= 0 && best.col < 0; ++j) {
    if (std::fabs(g(best.row, j)) == least) best.col = j;
  }
  return best;
}

}  // namespace

Dense multiply(const Dense& a, const Dense& b) {
  Dense m(a.rows, b.cols);
  for (int i = 0; i < a.rows; ++i) {
    for (int k = 0; k < a.cols; ++k) {
      if (a(i, k) != 0.0) subtract(-a(i, k), b.row(k), b.cols, m.row(i));
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

Dense rows_of(const Dense& a, const std::vector<int>& rows) {
  Dense m(static_cast<int>(rows.size()), a.cols);
  double* to = m.values.data();
  for (const int r : rows) {
    for (int c = 0; c < a.cols; ++c) *to++ = a(r, c);
  }
  return m;
}

bool choose_gauge(const Dense& w, int candidates, std::vector<int>* select, std::vector<int>* rest, Dense* gauge) {
  const int r = w.cols;
  if (candidates < r) return false;
  std::vector<int> owner(static_cast<std::size_t>(r), -1);  // the row that is the unit vector of each column
  std::vector<char> taken(static_cast<std::size_t>(w.rows), 0);
  Dense g = w;
  const auto take = [&](Place at) {
    int& previous = owner[static_cast<std::size_t>(at.col)];
    if (previous >= 0) taken[static_cast<std::size_t>(previous)] = 0;
    previous = at.row;
    taken[static_cast<std::size_t>(at.row)] = 1;
    make_unit(&g, at.row, at.col);
  };
  double scale = 0.0;
  for (int step = 0; step < r; ++step) {
    const Place at = largest(g, candidates, step, kRankTolerance * scale, taken);
    if (at.row < 0) return false;
    if (step == 0) scale = std::fabs(g(at.row, at.col));
    for (int i = 0; i < g.rows; ++i) std::swap(g(i, step), g(i, at.col));  // the order of columns means nothing
    take({at.row, step});
  }
  for (int swap = 0; swap < 16 * r; ++swap) {
    const Place at = largest(g, candidates, 0, kLargest, taken);
    if (at.row < 0) break;
    take(at);
  }
  rest->clear();
  for (int i = 0; i < w.rows; ++i) {
    if (!taken[static_cast<std::size_t>(i)]) rest->push_back(i);
  }
  for (const int i : *rest) {
    if (i < candidates && !(largest_of(g.row(i), r) < 2.0)) return false;
  }
  *select = owner;
  *gauge = rows_of(g, *rest);
  return true;
}

}  // namespace port
