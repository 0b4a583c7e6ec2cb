// SPDX-License-Identifier: Apache-2.0
// The steps before and inside attention: embedding factors, LayerNorm, hop aggregation, heads (eqs. 4-8).
// Included once per instruction set by forward.h, which explains them. Test: csrc/tests/test_network.cpp.

// y[n][j * width ...] = sum over the row of H_j of x, then the constant columns.
static void aggregate(const Plan& plan, const float* x, int x_ld, int width, const float* tail, int tail_cols, float* y,
                      int y_ld) {
  const int n = plan.joints;
  const int32_t* start = plan.at<int32_t>(plan.hops.start);
  const int32_t* index = plan.at<int32_t>(plan.hops.index);
  const float* value = plan.at<float>(plan.hops.value);
  for (int i = 0; i < n; ++i) {
    float* row = y + i * y_ld;
    for (int j = 0; j < plan.hops.count; ++j) {  // ascending: a padded row overwrites the start of the next block
      const int first = start[j * n + i], last = start[j * n + i + 1];
      for (int c = 0; c < width; c += 4 * kVec) {
        if (width - c > 3 * kVec) {
          Vec s[4] = {zero(), zero(), zero(), zero()};
          for (int e = first; e < last; ++e) {
            const Vec weight = splat(value[e]);
            const float* from = x + index[e] * x_ld + c;
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) s[v] = fma(weight, load(from + v * kVec), s[v]);
          }
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) store(row + j * width + c + v * kVec, s[v]);
          continue;
        }
        for (int cc = c; cc < width; cc += kVec) {
          Vec s = zero();
          for (int e = first; e < last; ++e) s = fma(splat(value[e]), load(x + index[e] * x_ld + cc), s);
          store(row + j * width + cc, s);
        }
      }
    }
    const int at = plan.hops.count * width;
    for (int c = 0; c < tail_cols; ++c) row[at + c] = tail[i * tail_cols + c];
  }
}

// x = (z - mean) / sqrt(var + eps), row by row; then z += bias. scales [N]: 1 / sqrt(...). Padding lanes of z are zero
// and stay so in x.
static void normalise(const Plan& plan, float* z, const float* bias, float* x, float* scales) {
  const int n = plan.joints, d = plan.d, ld = plan.d_ld;
  const float inverse_d = 1.0f / static_cast<float>(d);
  for (int i = 0; i < n; ++i, z += ld, x += ld) {
    Vec total = zero();
    for (int c = 0; c < ld; c += kVec) total += load(z + c);
    const float mean = sum(total) * inverse_d;
    const Vec shift = splat(mean);
    Vec squares = zero();
    for (int c = 0; c < ld; c += kVec) {
      const Vec v = load(z + c) - shift;
      store(x + c, v);
      squares = fma(v, v, squares);
    }
    // The padding lanes each hold -mean: take them out again only where there are any.
    float square = sum(squares);
    if (ld != d) {
      square = 0.0f;
      for (int c = 0; c < d; ++c) square += x[c] * x[c];
    }
    scales[i] = 1.0f / __builtin_sqrtf(square * inverse_d + plan.eps);
    const Vec scale = splat(scales[i]);
    for (int c = 0; c < ld; c += kVec) {
      store(x + c, load(x + c) * scale);
      store(z + c, load(z + c) + load(bias + c));
    }
    for (int c = d; c < ld; ++c) x[c] = 0.0f;
  }
}

// u = the embedding's factors: [H_1 in, ..., H_J in] (shared weights: J = 1), and the mask indicator.
static void factors(const Plan& plan, const float* inputs, const uint8_t* mask, float* u, int u_ld) {
  const int n = plan.joints, channels = plan.channels;
  const int32_t* start = plan.at<int32_t>(plan.hops.start);
  const int32_t* index = plan.at<int32_t>(plan.hops.index);
  const float* value = plan.at<float>(plan.hops.value);
  for (int i = 0; i < n; ++i, u += u_ld) {
    for (int c = 0; c < u_ld; ++c) u[c] = 0.0f;
    if (plan.mask_embedding && mask[i]) {
      u[plan.rank - 1] = 1.0f;
      continue;
    }
    for (int j = 0; j < plan.hops.count; ++j) {
      for (int e = start[j * n + i]; e < start[j * n + i + 1]; ++e) {
        const float* from = inputs + index[e] * channels;
        for (int c = 0; c < channels; ++c) u[j * channels + c] += value[e] * from[c];
      }
    }
  }
}

#if PORT_BF16
// Rows of floats (a multiple of 16) to bf16.
static void to_bf16(int n, const float* from, int ld, uint16_t* to, int to_ld) {
  for (int i = 0; i < n; ++i) {
    int c = 0;
    for (; c + 32 <= ld; c += 32) store_bf16(to + i * to_ld + c, load(from + i * ld + c), load(from + i * ld + c + 16));
    if (c < ld) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * to_ld + c),
                          (__m256i)_mm512_cvtneps_pbh(load(from + i * ld + c)));
    }
  }
}
#endif

#if PORT_BF16
// Rows 2i and 2i + 1 of a become row i of pairs, in place; an odd last row is paired with zero.
static void pair_rows(float* a, int rows, int ld) {
  for (int i = 0; i < rows; i += 2) {
    for (int c = 0; c < ld; c += kVec) {
      const Vec odd = i + 1 < rows ? load(a + (i + 1) * ld + c) : zero();
      store_pairs(a + i / 2 * ld + c, load(a + i * ld + c), odd);
    }
  }
}
#endif

// A product in the precision of its weights; `half` is the bf16 copy of a (same ld) or unused.
static void apply(const Plan& plan, const Matrix& matrix, int n, const float* a, int ld, const uint16_t* half,
                  const Result& result) {
#if PORT_BF16
  if (matrix.bf16) {
    return product<Kind::kBf16>(plan, matrix, n, Lhs{reinterpret_cast<const float*>(half), ld / 2, 1, nullptr}, result);
  }
#endif
  (void)half;
  product<Kind::kFloat>(plan, matrix, n, Lhs{a, ld, 1, nullptr}, result);
}

// Rows d ... d + count - 1 of Q^T for kVec joints, from the registers that transposed them. select: rows of Y^T to add.
PORT_INLINE void put_queries(Vec (&block)[kVec], int count, const float* yt, const int32_t* select, float* qt, int ld,
                             bool pairs) {
#pragma GCC unroll 16
  for (int i = 0; i < count; ++i) {
    if (select) block[i] += load(yt + select[i] * ld);
    if (!pairs) store(qt + i * ld, block[i]);
  }
#if PORT_BF16
#pragma GCC unroll 8
  for (int i = 0; i < count / 2; ++i) {
    if (pairs) store_pairs(qt + i * ld, block[2 * i], block[2 * i + 1]);
  }
#endif
}

// qt[d][n] = yt[select[d]][n] + t[n][d]; either part may be absent. pairs: bf16, rows 2d and 2d + 1 as pairs.
static void transpose_queries(const Plan& plan, const LayerPlan& layer, const HeadPlan& head, const Workspace& w,
                              bool pairs) {
  const int ld = plan.joints_ld;
  const int32_t* select = head.select ? plan.at<int32_t>(head.select) : nullptr;
  for (int d = 0; d < layer.score_width; d += kVec) {
    const int32_t* rows = select ? select + d : nullptr;
    const int count = layer.score_width - d < kVec ? layer.score_width - d : kVec;
    for (int n = 0; n < ld; n += kVec) {
      Vec block[kVec];
      if (head.query.cols) {
#pragma GCC unroll 16
        for (int i = 0; i < kVec; ++i) block[i] = load(w.t + (n + i) * layer.score_ld + d);
        transpose(block);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kVec; ++i) block[i] = zero();
      }
      float* to = w.qt + (pairs ? d / 2 : d) * ld + n;
      if (count == kVec) {  // a known count keeps the block in registers
        put_queries(block, kVec, w.yt + n, rows, to, ld, pairs);
      } else {
        put_queries(block, count, w.yt + n, rows, to, ld, pairs);
      }
    }
  }
}

static void transpose_rows(const float* y, int y_ld, int rows, float* yt, int ld) {
  for (int d = 0; d < rows; d += kVec) {
    for (int n = 0; n < ld; n += kVec) {
      Vec block[kVec];
#pragma GCC unroll 16
      for (int i = 0; i < kVec; ++i) block[i] = load(y + (n + i) * y_ld + d);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kVec; ++i) store(yt + (d + i) * ld + n, block[i]);
    }
  }
}

// Down the columns of p [rows][ld]: exp2(p - max) / sum.
static void softmax_columns(float* p, int rows, int ld) {
  for (int n = 0; n < ld; n += kVec) {
    Vec most = load(p + n);
    for (int m = 1; m < rows; ++m) most = max(most, load(p + m * ld + n));
    Vec total = zero();
    for (int m = 0; m < rows; ++m) {
      const Vec e = exp2(load(p + m * ld + n) - most);
      total += e;
      store(p + m * ld + n, e);
    }
    const Vec scale = splat(1.0f) / total;
    for (int m = 0; m < rows; ++m) store(p + m * ld + n, load(p + m * ld + n) * scale);
  }
}

// t = Y_rest G, or Y W_Q where there is no identity part.
static void queries(const Plan& plan, const LayerPlan& layer, const HeadPlan& head, const Workspace& w) {
  const int n = plan.joints, y_ld = layer.y_ld;
  const Result to{w.t, layer.score_ld, nullptr, 0, false};
  if (!head.rest) return apply(plan, head.query, n, w.y, y_ld, w.half, to);
  product<Kind::kIndexed>(plan, head.query, n, Lhs{w.y, y_ld, 1, plan.at<int32_t>(head.rest)}, to);
}

// Attention weights of one head, transposed: p[m][n].
static void head_attention(const Plan& plan, const LayerPlan& layer, const HeadPlan& head, const Workspace& w,
                           float* p) {
  const int n = plan.joints, ld = plan.joints_ld;
  apply(plan, head.key, n, w.y, layer.y_ld, w.half, Result{w.key, layer.score_ld, nullptr, 0, false});
  if (head.query.cols) queries(plan, layer, head, w);
  const Result scores{p, ld, nullptr, 0, false};
#if PORT_BF16
  if (head.key.bf16 && layer.score_width % 2 == 0) {
    transpose_queries(plan, layer, head, w, true);
    to_bf16(n, w.key, layer.score_ld, reinterpret_cast<uint16_t*>(w.key), layer.score_ld);  // in place
    product_plain<Kind::kBf16>(n, Lhs{w.key, layer.score_ld / 2, 1, nullptr}, w.qt, ld, layer.score_width / 2, ld,
                               scores);
    return softmax_columns(p, n, ld);
  }
#endif
  transpose_queries(plan, layer, head, w, false);
  product_plain<Kind::kFloat>(n, Lhs{w.key, layer.score_ld, 1, nullptr}, w.qt, ld, layer.score_width, ld, scores);
  softmax_columns(p, n, ld);
}

// Eq. (8). x is normalised already, and out_bias is in z.
static void attention(const Plan& plan, const LayerPlan& layer, const Workspace& w) {
  const int n = plan.joints, ld = plan.joints_ld, heads = plan.heads;
  const HeadPlan* head = plan.at<HeadPlan>(layer.heads);
  const int tail_cols = layer.y_ld - plan.hops.count * layer.width;
  aggregate(plan, w.x, layer.x_ld, layer.width, plan.at<float>(layer.tail), tail_cols, w.y, layer.y_ld);
  if (head[0].select) transpose_rows(w.y, layer.y_ld, layer.y_ld, w.yt, ld);
#if PORT_BF16
  if (head[0].key.bf16) to_bf16(n, w.y, layer.y_ld, w.half, layer.y_ld);
#endif
  for (int h = 0; h < heads; ++h) head_attention(plan, layer, head[h], w, w.p + h * n * ld);

  const Result residual{w.z, plan.d_ld, w.z, plan.d_ld, false};
  if (layer.values == Values::kDirect) {
    for (int h = 0; h < heads; ++h) {
      apply(plan, head[h].value, n, w.y, layer.y_ld, w.half,
            Result{w.v + h * n * layer.value_ld, layer.value_ld, nullptr, 0, false});
    }
#if PORT_BF16
    if (head[0].value.bf16) {
      pair_rows(w.p, heads * n, ld);
      pair_rows(w.v, heads * n, layer.value_ld);
      return product_plain<Kind::kBf16>(n, Lhs{w.p, 1, ld, nullptr}, w.v, layer.value_ld, (heads * n + 1) / 2,
                                        plan.d_ld, residual);
    }
#endif
    return product_plain<Kind::kFloat>(n, Lhs{w.p, 1, ld, nullptr}, w.v, layer.value_ld, heads * n, plan.d_ld,
                                       residual);
  }
  const int o_ld = heads * layer.value_ld;
  for (int h = 0; h < heads; ++h) {
    const float* v = w.y;
    int v_ld = layer.y_ld;
    if (layer.values == Values::kConcat) {
      apply(plan, head[h].value, n, w.y, layer.y_ld, w.half, Result{w.v, layer.value_ld, nullptr, 0, false});
      v = w.v, v_ld = layer.value_ld;
    }
    product_plain<Kind::kFloat>(n, Lhs{w.p + h * n * ld, 1, ld, nullptr}, v, v_ld, n, layer.value_ld,
                                Result{w.o + h * layer.value_ld, o_ld, nullptr, 0, false});
  }
#if PORT_BF16
  if (layer.out.bf16) to_bf16(n, w.o, o_ld, w.half, o_ld);
#endif
  apply(plan, layer.out, n, w.o, o_ld, w.half, residual);
}
