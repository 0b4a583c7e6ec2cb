// SPDX-License-Identifier: Apache-2.0
// The slow twin of layer_mma.h: the products of an encoder layer in plain fp32, for those who ask for it, and as the
// standard that the tensor cores are held to. Same functions, same order of sums over slots.
//
// Split     A warp takes 32 output channels and kGroup joints; a lane has one channel and kGroup sums in registers.
// Memory    Weights row-major, read once per kGroup joints, 128 bytes per warp and row. Activations float, rows padded
// by
//           16 bytes; all lanes read the same value.
// Sync      As layer_mma.h.
// Numerics  fp32 fused multiply-adds.
// Test: csrc/tests/emulated/test_line.cpp.
#pragma once

#include "block.h"

namespace port::kernels {

constexpr int kGroup = 8;

// to[n][c] = start(n, c) + sum over k of rows[n][k] weights[k][c], through finish(n, c, sum). columns: a multiple
// of 16.
template <typename B, typename Start, typename Finish>
PORT_DEVICE void plain_product(const B& b, const float* rows, int ld, int depth, const float* weights, int columns,
                               Start start, Finish finish) {
  const int blocks = (columns + kLanes - 1) / kLanes;
  PORT_LOOP
  for (int unit = b.warp; unit < blocks * B::kCols; unit += kWarps) {
    const int n = unit / blocks * kGroup, c = unit % blocks * kLanes + b.lane;
    if (c >= columns) continue;
    float sums[kGroup];
    PORT_UNROLL
    for (int i = 0; i < kGroup; ++i) sums[i] = start(n + i, c);
    const float* from = rows + n * ld;
    PORT_LOOP
    for (int k = 0; k < depth; k += 4) {
      PORT_UNROLL
      for (int kk = 0; kk < 4; ++kk) {
        const float weight = weights[(k + kk) * columns + c];
        PORT_UNROLL
        for (int i = 0; i < kGroup; ++i) sums[i] = fmaf(from[i * ld + k + kk], weight, sums[i]);
      }
    }
    PORT_UNROLL
    for (int i = 0; i < kGroup; ++i) finish(n + i, c, sums[i]);
  }
}

// bias [hops][ld] times H_j 1.
template <typename B>
PORT_DEVICE float projected_bias(const B& b, const float* bias, int ld, int n, int c) {
  float sum = 0.0f;
  PORT_LOOP
  for (int j = 0; j < b.net.hops; ++j) sum = fmaf(b.row_sum()[j * kMaxJoints + n], bias[j * ld + c], sum);
  return sum;
}

// Softmax of the scores of one head, a warp per query, a lane per key. Needs queries and keys.
template <typename B>
PORT_DEVICE void plain_attend(const B& b, int ld) {
  const Network& net = b.net;
  const float *queries = b.qk(0), *keys = queries + B::kRows * ld;
  const int p_ld = padded_row<float>((B::kRows + 15) / 16 * 16);
  PORT_LOOP
  for (int n = b.warp; n < B::kRows; n += kWarps) {
    float score = -INFINITY;
    if (b.lane < net.joints) {
      score = 0.0f;
      for (int d = 0; d < net.head_ld; ++d) score = fmaf(queries[n * ld + d], keys[b.lane * ld + d], score);
    }
    const float most = warp_max(score), weight = b.lane < net.joints ? exp2_approx(score - most) : 0.0f;
    const float total = warp_sum(weight);
    if (b.lane < B::kRows) b.weights(0)[n * p_ld + b.lane] = weight / total;
  }
}

template <typename B>
PORT_DEVICE void attention_plain(const B& b, const unsigned char* share) {
  const Network& net = b.net;
  const int depth = net.hops * net.width_ld, ld = padded_row<float>(net.head_ld), z_ld = row_ld(net);
  const int p_ld = padded_row<float>((B::kRows + 15) / 16 * 16);
  float* values = b.qk(0) + 2 * B::kRows * ld;
  PORT_LOOP
  for (int h = 0; h < net.heads; ++h) {
    const float* weights = reinterpret_cast<const float*>(share + net.qk) + h * depth * 2 * net.head_ld;
    const float* bias = reinterpret_cast<const float*>(share + net.qk_bias) + h * net.hops * 2 * net.head_ld;
    plain_product(
        b, b.y(0), b.y_ld(), depth, weights, 2 * net.head_ld,
        [&](int n, int c) { return projected_bias(b, bias, 2 * net.head_ld, n, c); },
        [&](int n, int c, float sum) {
          const bool key = c >= net.head_ld;
          b.qk(0)[((key ? B::kRows : 0) + n) * ld + (key ? c - net.head_ld : c)] = sum;
        });
    const float* value_weights = reinterpret_cast<const float*>(share + net.value) + h * depth * net.width_ld;
    const float* value_bias = reinterpret_cast<const float*>(share + net.value_bias) + h * net.hops * net.width_ld;
    plain_product(
        b, b.y(0), b.y_ld(), depth, value_weights, net.width_ld,
        [&](int n, int c) { return projected_bias(b, value_bias, net.width_ld, n, c); },
        [&](int n, int c, float sum) { values[n * z_ld + c] = sum; });
    sync_block();
    plain_attend(b, ld);
    sync_block();
    float* partial = b.partial(0, false, 0);
    for (int i = thread_index(); i < net.joints * net.width_ld; i += kLineThreads) {
      const int n = i / net.width_ld, c = i % net.width_ld;
      float sum = h > 0 ? partial[n * z_ld + c] : 0.0f;
      for (int m = 0; m < net.joints; ++m) sum = fmaf(b.weights(0)[n * p_ld + m], values[m * z_ld + c], sum);
      partial[n * z_ld + c] = sum;
    }
    sync_block();
  }
}

template <typename B>
PORT_DEVICE void mlp_plain(const B& b, const unsigned char* share) {
  const Network& net = b.net;
  const int hidden = net.hidden_tiles * 16, ld = padded_row<float>(hidden), z_ld = row_ld(net);
  const float* bias = reinterpret_cast<const float*>(share + net.fc1_bias);
  plain_product(
      b, b.y(0), padded_row<float>(net.width_ld), net.width_ld, reinterpret_cast<const float*>(share + net.fc1), hidden,
      [&](int, int c) { return bias[c]; }, [&](int n, int c, float sum) { b.qk(0)[n * ld + c] = fmaxf(sum, 0.0f); });
  sync_block();
  float* partial = b.partial(0, true, 0);
  plain_product(
      b, b.qk(0), ld, hidden, reinterpret_cast<const float*>(share + net.fc2), net.width_ld,
      [](int, int) { return 0.0f; }, [&](int n, int c, float sum) { partial[n * z_ld + c] = sum; });
}

}  // namespace port::kernels
