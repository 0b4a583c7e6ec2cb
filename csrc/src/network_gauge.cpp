// SPDX-License-Identifier: Apache-2.0
// Rows of maximal volume by Gauss-Jordan elimination with full pivoting, then by swaps. network_gauge.h says what for.
#include "network_gauge.h"

#include <cmath>
#include <cstddef>
#include <utility>

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

// The largest |entry| above `least` among free rows and columns (null: all are free).
Place largest(const Dense& g, int rows, double least, const std::vector<int>* owner, const std::vector<char>& taken) {
  Place best;
  for (int i = 0; i < rows; ++i) {
    if (taken[static_cast<std::size_t>(i)]) continue;
    const double* row = g.row(i);
    for (int j = 0; j < g.cols; ++j) {
      if (std::fabs(row[j]) > least && (!owner || owner->data()[j] < 0)) least = std::fabs(row[j]), best = {i, j};
    }
  }
  return best;
}

// w times the inverse of its rows `select`; false if that is singular.
bool relative_to(const Dense& w, const std::vector<int>& select, Dense* g) {
  const int n = w.cols;
  Dense a = rows_of(w, select), inverse(n, n);
  for (int i = 0; i < n; ++i) inverse(i, i) = 1.0;
  for (int c = 0; c < n; ++c) {
    int pivot = c;
    for (int r = c + 1; r < n; ++r) {
      if (std::fabs(a(r, c)) > std::fabs(a(pivot, c))) pivot = r;
    }
    if (!(std::fabs(a(pivot, c)) > 0.0)) return false;
    for (int k = 0; k < n && pivot != c; ++k) {
      std::swap(a(c, k), a(pivot, k));
      std::swap(inverse(c, k), inverse(pivot, k));
    }
    const double scale = 1.0 / a(c, c);
    for (int k = 0; k < n; ++k) a(c, k) *= scale, inverse(c, k) *= scale;
    for (int r = 0; r < n; ++r) {
      const double factor = a(r, c);
      if (r == c || factor == 0.0) continue;
      subtract(factor, a.row(c), n, a.row(r));
      subtract(factor, inverse.row(c), n, inverse.row(r));
    }
  }
  *g = multiply(w, inverse);
  return true;
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
  std::vector<int> owner(static_cast<std::size_t>(r), -1);  // the selected row that is the unit vector of each column
  std::vector<char> taken(static_cast<std::size_t>(w.rows), 0);
  const auto take = [&](Dense* g, Place at) {
    int& previous = owner[static_cast<std::size_t>(at.col)];
    if (previous >= 0) taken[static_cast<std::size_t>(previous)] = 0;
    previous = at.row;
    taken[static_cast<std::size_t>(at.row)] = 1;
    make_unit(g, at.row, at.col);
  };
  Dense g = w;
  double scale = 0.0;
  for (const double v : w.values) scale = std::fmax(scale, std::fabs(v));
  for (int step = 0; step < r; ++step) {
    const Place at = largest(g, candidates, kRankTolerance * scale, &owner, taken);
    if (at.row < 0) return false;
    take(&g, at);
  }
  for (int swap = 0; swap < 16 * r; ++swap) {
    const Place at = largest(g, candidates, kLargest, nullptr, taken);
    if (at.row < 0) break;
    take(&g, at);
  }
  if (!relative_to(w, owner, &g)) return false;  // afresh: the swaps let rounding errors grow
  rest->clear();
  for (int i = 0; i < w.rows; ++i) {
    if (!taken[static_cast<std::size_t>(i)]) rest->push_back(i);
  }
  for (const int i : *rest) {
    for (int j = 0; j < r; ++j) {
      if (i < candidates && !(std::fabs(g(i, j)) < 2.0)) return false;
    }
  }
  *select = owner;
  *gauge = rows_of(g, *rest);
  return true;
}

}  // namespace port
