// SPDX-License-Identifier: Apache-2.0
// Small products C[n][cols] = init + A[n][k] B[k][cols], n <= 33 joints, for one thread. Included once per instruction
// set.
//
// Split   B is walked in column chunks of C vectors, and for each chunk the rows of A in tiles of R (of nearly equal
//         size, at most kMaxRows(C)). A tile keeps its R x C accumulators in registers for the whole of k: per k it
//         loads C vectors and broadcasts R scalars for R * C multiply-adds, so that the multiply-add unit is the limit
//         and not the load ports (AVX-512: 7 x 2 for 21 joints, 14 FMA on 2 + 7 loads).
// Memory  Weights are packed in panels [k][32] (network_pack.cpp): a panel is 128 k bytes, stays in L1 while the row
//         tiles pass over it, and is followed in memory by the next one needed, which the first tile prefetches.
// Numerics One accumulator per element and k in ascending order, whatever R: a row's result depends on that row only.
//         fp32 accumulation also for bf16.
// Test: csrc/tests/test_network.cpp.

struct Lhs {
  const float* a;        // fp32, or pairs of bf16 in the same four bytes
  ptrdiff_t row;         // floats from row to row
  ptrdiff_t step;        // floats from k to k + 1
  const int32_t* index;  // or the place of each k in a row, instead of k * step
};

struct Result {
  float* out;
  ptrdiff_t row;
  const float* init;   // null: zero
  ptrdiff_t init_row;  // 0: the same for all rows, a bias
  bool relu;
};

enum class Kind { kFloat, kIndexed, kBf16 };

constexpr int kMaxRows(int c) {
#if PORT_VECTOR == 16 || defined(__aarch64__)
  return c <= 2 ? 8 : c == 3 ? 7 : 6;  // 32 registers
#else
  return c == 1 ? 8 : c == 2 ? 6 : c == 3 ? 4 : 3;  // 16 registers
#endif
}

template <Kind kind, int R, int C>
static __attribute__((noinline)) void tile(const Lhs& lhs, const float* b, ptrdiff_t b_ld, int k, const Result& result,
                                           ptrdiff_t ahead) {
  constexpr size_t kRows = R, kCols = C;
  Vec sum[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      sum[r][c] = result.init ? load(result.init + r * result.init_row + c * kVec) : zero();
    }
  }
  const float* a[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) a[r] = lhs.a + r * lhs.row;
  ptrdiff_t place = 0;
  for (int i = 0; i < k; ++i) {
    if (kind == Kind::kIndexed) place = lhs.index[i];
    Vec w[kCols];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      w[c] = load(b + c * kVec);
      if (ahead && c * kVec % 16 == 0) __builtin_prefetch(b + c * kVec + ahead, 0, 2);  // into L2: L1 is full
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#if PORT_BF16
      if (kind == Kind::kBf16) {
        uint32_t pair;
        __builtin_memcpy(&pair, a[r] + place, 4);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] = dot_bf16(sum[r][c], pair, w[c]);
        continue;
      }
#endif
      const Vec x = splat(a[r][place]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] = fma(x, w[c], sum[r][c]);
    }
    b += b_ld;
    if (kind != Kind::kIndexed) place += lhs.step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const Vec v = result.relu ? max(sum[r][c], zero()) : sum[r][c];
      store(result.out + r * result.row + c * kVec, v);
    }
  }
}

template <Kind kind, int R, int C>
PORT_INLINE void tile_of(int rows, const Lhs& lhs, const float* b, ptrdiff_t b_ld, int k, const Result& result,
                         ptrdiff_t ahead) {
  if (rows == R) return tile<kind, R, C>(lhs, b, b_ld, k, result, ahead);
  if constexpr (R > 1) tile_of<kind, R - 1, C>(rows, lhs, b, b_ld, k, result, ahead);
}

template <Kind kind, int C>
PORT_INLINE void column_chunk(int n, Lhs lhs, const float* b, ptrdiff_t b_ld, int k, Result result, ptrdiff_t ahead) {
  int tiles = (n + kMaxRows(C) - 1) / kMaxRows(C);
  for (; tiles > 0; --tiles) {
    const int rows = (n + tiles - 1) / tiles;
    tile_of<kind, kMaxRows(C), C>(rows, lhs, b, b_ld, k, result, ahead);
    n -= rows;
    lhs.a += rows * lhs.row;
    result.out += rows * result.row;
    if (result.init) result.init += rows * result.init_row;
    ahead = 0;  // the first tile has fetched it
  }
}

// `width` columns, a multiple of kVec, of a row-major B.
template <Kind kind>
static void columns(int n, const Lhs& lhs, const float* b, ptrdiff_t b_ld, int k, int width, Result result,
                    ptrdiff_t ahead) {
  constexpr int kMost = PORT_VECTOR == 16 ? 2 : 4;
  int vectors = width / kVec;
  while (vectors > 0) {
    const int c = vectors < kMost ? vectors : kMost;
    if (c == 1) column_chunk<kind, 1>(n, lhs, b, b_ld, k, result, ahead);
    if (c == 2) column_chunk<kind, 2>(n, lhs, b, b_ld, k, result, ahead);
#if PORT_VECTOR != 16
    if (c == 3) column_chunk<kind, 3>(n, lhs, b, b_ld, k, result, ahead);
    if (c == 4) column_chunk<kind, 4>(n, lhs, b, b_ld, k, result, ahead);
#endif
    b += c * kVec;
    result.out += c * kVec;
    if (result.init) result.init += c * kVec;
    vectors -= c;
  }
}

// A packed matrix. Of bf16 weights, `lhs` is a bf16 left-hand side: two columns of it count as one float.
template <Kind kind>
static void product(const Plan& plan, const Matrix& matrix, int n, const Lhs& lhs, Result result) {
  const float* b = plan.at<float>(matrix.data);
  const int k = kind == Kind::kBf16 ? matrix.k / 2 : matrix.k;
  for (int done = 0; done < matrix.cols; done += kPanel) {
    const int width = matrix.cols - done < kPanel ? matrix.cols - done : kPanel;
    columns<kind>(n, lhs, b, width, k, width, result, static_cast<ptrdiff_t>(width) * k);
    b += static_cast<ptrdiff_t>(width) * k;
    result.out += width;
    if (result.init) result.init += width;
  }
}

// C = init + A B with B row-major [k][cols], cols a multiple of kVec (bf16: both in pairs, k of them).
template <Kind kind>
PORT_INLINE void product_plain(int n, const Lhs& lhs, const float* b, ptrdiff_t b_ld, int k, int cols,
                               const Result& result) {
  columns<kind>(n, lhs, b, b_ld, k, cols, result, 0);
}
