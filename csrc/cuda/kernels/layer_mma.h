// SPDX-License-Identifier: Apache-2.0
// The products of an encoder layer on tensor cores, eqs. (6)-(9), fp16 or bf16 operands with fp32 sums.
//
//   Q^T, K^T = W^T Y^T + bias     P = softmax(Q K^T)     V'^T = (W_V W_O)^T Y^T + bias     partial_s += V'^T P^T
//   h^T = relu(W_1^T x^T + b_1)   partial_s = W_2^T h^T                                    s: slot of head or of h
//
// Split     Weights are the M side, so that N joints pad to 8 and not to 16. A warp takes tiles of 16 output channels,
//           all joints of all its block's poses at once: a weight tile is read once per block. Scores: 16 queries of a
//           head per warp. The fragment of V'^T that a warp has summed is the left operand of V'^T P^T as it lies in
//           registers: values never reach memory, and the first kHeld units of a warp are computed beside Q and K.
// Memory    Weights lie in the order of fragments (csrc/cuda/pack.cpp), 512 bytes per 16 x 16 tile, 16 per lane: from
//           L2 one coalesced load, from shared memory without bank conflicts. Rows of activations are padded by 16
//           bytes, so that the eight rows that ldmatrix reads lie on different banks. Out^T tiles are transposed in
//           registers (movmatrix) and stored as pairs of channels.
// Sync      Each function says what must be synchronised before it; none ends with a barrier.
// Numerics  Biases are where sums start, in fp32. Softmax in fp32; its weights are rounded after they are normalised.
// Test: csrc/tests/emulated/test_line.cpp.
#pragma once

#include "block.h"

namespace port::kernels {

constexpr int kTileBytes = 512;

// What fits a kernel's registers: 128 where two blocks share a processor, else 255.
template <typename B>
struct Depth {
  static constexpr bool kShared = B::kPoses == 1 && !B::kCluster;
  static constexpr int kAhead = kShared ? 2 : 4;  // tiles of one row of tiles that are loaded before the first is used
  static constexpr int kHeld = kShared ? 1 : 2;   // units of values that a warp keeps in registers over the softmax
};

template <typename B>
using Sums = float[B::kPoses * B::kCols][4];

template <bool kCluster>
PORT_DEVICE Words load_tile(const unsigned char* tile, int lane) {
  const unsigned char* from = tile + lane * 16;
  return kCluster && weights_are_copied() ? load_shared(from) : load_constant(from);
}

// Right operands: 16 values from column k on of kCols tiles of eight rows.
template <int kCols>
PORT_DEVICE void load_columns(const uint16_t* rows, int ld, int k, int lane, uint32_t (&to)[kCols][2]) {
  const uint16_t* from = rows + (lane / 16 * 8 + lane % 8) * ld + k + lane / 8 % 2 * 8;
  PORT_UNROLL
  for (int c = 0; c + 1 < kCols; c += 2) {
    uint32_t four[4];
    load_matrices(four, from + c * 8 * ld);
    to[c][0] = four[0];
    to[c][1] = four[1];
    to[c + 1][0] = four[2];
    to[c + 1][1] = four[3];
  }
  if constexpr (kCols % 2 == 1) {  // lanes 16..31 give addresses that nobody reads: the same rows again
    load_matrices(to[kCols - 1], rows + ((kCols - 1) * 8 + lane % 8) * ld + k + lane / 8 % 2 * 8);
  }
}

// sums[t] += tiles[t] (one row of k_steps tiles) times the rows of all poses.
template <typename B, int kTiles>
PORT_DEVICE void multiply(const B& b, const unsigned char* const (&tiles)[kTiles], int k_steps,
                          const uint16_t* (&rows)[B::kPoses], int ld, Sums<B> (&sums)[kTiles]) {
  constexpr int kAhead = Depth<B>::kAhead;
  PORT_LOOP
  for (int first = 0; first < k_steps; first += kAhead) {
    Words weights[kAhead][kTiles];
    PORT_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= k_steps) break;
      PORT_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        weights[i][t] = load_tile<B::kCluster>(tiles[t] + (first + i) * kTileBytes, b.lane);
      }
    }
    PORT_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= k_steps) break;
      PORT_UNROLL
      for (int which = 0; which < B::kPoses; ++which) {
        uint32_t columns[B::kCols][2];
        load_columns<B::kCols>(rows[which], ld, (first + i) * 16, b.lane, columns);
        PORT_UNROLL
        for (int t = 0; t < kTiles; ++t) {
          PORT_UNROLL
          for (int c = 0; c < B::kCols; ++c) {
            B::Format::multiply(sums[t][which * B::kCols + c], weights[i][t].w, columns[c]);
          }
        }
      }
    }
  }
}

template <typename B>
PORT_DEVICE void clear(Sums<B>& sums) {
  PORT_UNROLL
  for (int c = 0; c < B::kPoses * B::kCols; ++c) {
    PORT_UNROLL
    for (int i = 0; i < 4; ++i) sums[c][i] = 0.0f;
  }
}

// Where a projection starts: bias [hops][ld] at this tile's first channel, times H_j 1.
template <typename B>
PORT_DEVICE void start_with_bias(const B& b, const float* bias, int ld, Sums<B>& sums) {
  clear<B>(sums);
  const int g = b.lane / 4, t = b.lane % 4;
  PORT_LOOP
  for (int j = 0; j < b.net.hops; ++j) {
    const float upper = bias[j * ld + g], lower = bias[j * ld + g + 8];
    PORT_UNROLL
    for (int c = 0; c < B::kCols; ++c) {
      const float* total = b.row_sum() + j * kMaxJoints + c * 8 + 2 * t;
      const float left = total[0], right = total[1];
      PORT_UNROLL
      for (int which = 0; which < B::kPoses; ++which) {
        float (&s)[4] = sums[which * B::kCols + c];
        s[0] = fmaf(left, upper, s[0]);
        s[1] = fmaf(right, upper, s[1]);
        s[2] = fmaf(left, lower, s[2]);
        s[3] = fmaf(right, lower, s[3]);
      }
    }
  }
}

// Out^T, a tile of 16 channels, to rows [joint][channel].
template <typename B>
PORT_DEVICE void store_rows(const B& b, const Sums<B>& sums, int which, uint16_t* to, int ld) {
  const int g = b.lane / 4, t = b.lane % 4;
  PORT_UNROLL
  for (int c = 0; c < B::kCols; ++c) {
    const float (&s)[4] = sums[which * B::kCols + c];
    uint16_t* row = to + (c * 8 + g) * ld + 2 * t;
    store_pair(row, transpose_matrix(B::Format::pack(s[0], s[1])));
    store_pair(row + 8, transpose_matrix(B::Format::pack(s[2], s[3])));
  }
}

// The sums of a tile of 16 channels to the slot's partial, [joint][channel]. add: to what is there already; share: in
// all blocks of the cluster.
template <typename B>
PORT_DEVICE void store_partial(const B& b, const Sums<B>& sums, bool mlp, int slot, int tile, bool add, bool share) {
  const int g = b.lane / 4, t = b.lane % 4, ld = row_ld(b.net);
  PORT_UNROLL
  for (int which = 0; which < B::kPoses; ++which) {
    float* own = b.partial(which, mlp, slot) + 2 * t * ld + tile * 16 + g;
    float values[B::kCols][4];
    PORT_UNROLL
    for (int c = 0; c < B::kCols; ++c) {
      PORT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float before = add ? own[(c * 8 + i % 2) * ld + i / 2 * 8] : 0.0f;
        values[c][i] = before + sums[which * B::kCols + c][i];
      }
    }
    PORT_LOOP
    for (int r = 0; r < (B::kCluster && share ? b.blocks : 1); ++r) {
      float* to = B::kCluster && share ? peer_shared(own, r) : own;
      PORT_UNROLL
      for (int c = 0; c < B::kCols; ++c) {
        PORT_UNROLL
        for (int i = 0; i < 4; ++i) to[(c * 8 + i % 2) * ld + i / 2 * 8] = values[c][i];
      }
    }
  }
}

template <typename B>
PORT_DEVICE void rows_of_y(const B& b, const uint16_t* (&rows)[B::kPoses]) {
  PORT_UNROLL
  for (int which = 0; which < B::kPoses; ++which) rows[which] = b.y(which);
}

// Heads that a block works on between two barriers: round * own_slots + first, first + 1, ...
struct HeadGroup {
  int round, first, count;
};

// Queries and keys of the group's heads. Needs y, and that nobody reads qk any more.
template <typename B>
PORT_DEVICE void project_queries_and_keys(const B& b, const unsigned char* share, const HeadGroup& group) {
  const Network& net = b.net;
  const int k_steps = net.hops * net.width_ld / 16, per_head = 2 * net.head_ld / 16;
  const int ld = padded_row<uint16_t>(net.head_ld);
  const uint16_t* rows[B::kPoses];
  rows_of_y(b, rows);
  const int tiles = group.count * per_head;
  PORT_LOOP
  for (int first = 2 * b.warp; first < tiles; first += 2 * kWarps) {
    const unsigned char* weights[2];
    Sums<B> sums[2];
    PORT_UNROLL
    for (int t = 0; t < 2; ++t) {
      const int tile = first + t < tiles ? first + t : first;
      const unsigned char* own = share + static_cast<uint32_t>(group.first + tile / per_head) * net.share_bytes;
      const int of_round = group.round * per_head + tile % per_head;
      weights[t] = own + net.qk + static_cast<uint32_t>(of_round * k_steps) * kTileBytes;
      const float* bias = reinterpret_cast<const float*>(own + net.qk_bias);
      bias += group.round * net.hops * 2 * net.head_ld + tile % per_head * 16;
      start_with_bias(b, bias, 2 * net.head_ld, sums[t]);
    }
    multiply(b, weights, k_steps, rows, b.y_ld(), sums);
    PORT_UNROLL
    for (int t = 0; t < 2; ++t) {
      const int tile = first + t, head = tile / per_head, part = tile % per_head;
      if (tile >= tiles) break;
      const bool key = part * 16 >= net.head_ld;
      const int channel = part * 16 - (key ? net.head_ld : 0);
      PORT_UNROLL
      for (int which = 0; which < B::kPoses; ++which) {
        store_rows(b, sums[t], which, b.qk(which) + (2 * head + (key ? 1 : 0)) * B::kRows * ld + channel, ld);
      }
    }
  }
}

// A unit of values: V'^T of one head of the group for 16 channels of z, as left operands of V'^T P^T.
template <typename B>
struct Values {
  uint32_t pairs[B::kPoses * B::kCols][2];
};

template <typename B>
PORT_DEVICE void project_values(const B& b, const unsigned char* share, const HeadGroup& group, int unit,
                                Values<B>& values) {
  const Network& net = b.net;
  const int k_steps = net.hops * net.width_ld / 16, tiles = net.width_ld / 16;
  const unsigned char* own = share + static_cast<uint32_t>(group.first + unit / tiles) * net.share_bytes;
  const int of_round = group.round * tiles + unit % tiles;
  const unsigned char* const weights[1] = {own + net.value + static_cast<uint32_t>(of_round * k_steps) * kTileBytes};
  const float* bias = reinterpret_cast<const float*>(own + net.value_bias);
  bias += group.round * net.hops * net.width_ld + unit % tiles * 16;
  const uint16_t* rows[B::kPoses];
  rows_of_y(b, rows);
  Sums<B> sums[1];
  start_with_bias(b, bias, net.width_ld, sums[0]);
  multiply(b, weights, k_steps, rows, b.y_ld(), sums);
  PORT_UNROLL
  for (int c = 0; c < B::kPoses * B::kCols; ++c) {
    values.pairs[c][0] = B::Format::pack(sums[0][c][0], sums[0][c][1]);
    values.pairs[c][1] = B::Format::pack(sums[0][c][2], sums[0][c][3]);
  }
}

// Attention weights of the group's heads, [query][key] in rows of the joints padded to 16. Needs qk.
template <typename B>
PORT_DEVICE void attend(const B& b, const HeadGroup& group) {
  const Network& net = b.net;
  constexpr int kQueryTiles = (B::kRows + 15) / 16;
  const int ld = padded_row<uint16_t>(net.head_ld), p_ld = padded_row<uint16_t>(kQueryTiles * 16);
  const int g = b.lane / 4, t = b.lane % 4;
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * group.count * kQueryTiles; unit += kWarps) {
    const int which = unit / (group.count * kQueryTiles), head = unit / kQueryTiles % group.count;
    const int query = unit % kQueryTiles * 16;
    const uint16_t* queries = b.qk(which) + 2 * head * B::kRows * ld;
    const uint16_t* keys = queries + B::kRows * ld;
    const int row = query + b.lane % 16;
    const uint16_t* from = queries + (row < B::kRows ? row : B::kRows - 1) * ld + b.lane / 16 * 8;
    float s[B::kCols][4] = {};
    PORT_LOOP
    for (int k = 0; k < net.head_ld; k += 16) {
      uint32_t left[4], right[B::kCols][2];
      load_matrices(left, from + k);
      load_columns<B::kCols>(keys, ld, k, b.lane, right);
      PORT_UNROLL
      for (int c = 0; c < B::kCols; ++c) B::Format::multiply(s[c], left, right[c]);
    }
    PORT_UNROLL
    for (int half = 0; half < 2; ++half) {  // rows g and g + 8, four lanes each
      float most = -INFINITY;
      PORT_UNROLL
      for (int c = 0; c < B::kCols; ++c) {
        PORT_UNROLL
        for (int i = 0; i < 2; ++i) {
          if (c * 8 + 2 * t + i < net.joints) most = fmaxf(most, s[c][2 * half + i]);
        }
      }
      most = fmaxf(most, shuffle_xor(most, 1));
      most = fmaxf(most, shuffle_xor(most, 2));
      float total = 0.0f;
      PORT_UNROLL
      for (int c = 0; c < B::kCols; ++c) {
        PORT_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& value = s[c][2 * half + i];
          value = c * 8 + 2 * t + i < net.joints ? exp2_approx(value - most) : 0.0f;
          total += value;
        }
      }
      total += shuffle_xor(total, 1);
      total += shuffle_xor(total, 2);
      const float scale = 1.0f / total;
      const int to_row = query + half * 8 + g;
      if (to_row >= B::kRows) continue;
      uint16_t* to = b.weights(which) + (head * B::kRows + to_row) * p_ld + 2 * t;
      PORT_UNROLL
      for (int c = 0; c < B::kCols; ++c) {
        store_pair(to + c * 8, B::Format::pack(s[c][2 * half] * scale, s[c][2 * half + 1] * scale));
      }
      if constexpr (B::kCols % 2 == 1) store_pair(to + B::kCols * 8, 0u);
    }
  }
}

// partial += V'^T P^T of a unit. Needs the attention weights.
template <typename B>
PORT_DEVICE void mix_values(const B& b, const HeadGroup& group, int unit, const Values<B>& values, bool last_round) {
  const Network& net = b.net;
  constexpr int kSteps = (B::kCols + 1) / 2;
  const int tiles = net.width_ld / 16, head = unit / tiles, ld = padded_row<uint16_t>(kSteps * 16);
  Sums<B> sums;
  clear<B>(sums);
  PORT_UNROLL
  for (int which = 0; which < B::kPoses; ++which) {
    PORT_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      const auto& even = values.pairs[which * B::kCols + 2 * k];
      uint32_t left[4] = {even[0], even[1], 0u, 0u};
      if (2 * k + 1 < B::kCols) {
        constexpr int kLast = B::kPoses * B::kCols - 1;
        const int next = which * B::kCols + 2 * k + 1;
        left[2] = values.pairs[next < kLast ? next : kLast][0];
        left[3] = values.pairs[next < kLast ? next : kLast][1];
      }
      uint32_t right[B::kCols][2];
      load_columns<B::kCols>(b.weights(which) + head * B::kRows * ld, ld, k * 16, b.lane, right);
      PORT_UNROLL
      for (int c = 0; c < B::kCols; ++c) B::Format::multiply(sums[which * B::kCols + c], left, right[c]);
    }
  }
  store_partial(b, sums, false, b.first_slot() + group.first + head, unit % tiles, group.round > 0, last_round);
}

// Eq. (8) for the block's heads: y to the attention's partials. Needs y; barriers inside.
template <typename B>
PORT_DEVICE void attention(const B& b, const unsigned char* share) {
  constexpr int kHeld = Depth<B>::kHeld;
  const Network& net = b.net;
  const int own = b.own_slots(), rounds = net.heads / net.slots, tiles = net.width_ld / 16;
  PORT_LOOP
  for (int round = 0; round < rounds; ++round) {
    PORT_LOOP
    for (int first = 0; first < own; first += b.p.heads_at_once) {
      const int rest = own - first;
      const HeadGroup group = {round, first, rest < b.p.heads_at_once ? rest : b.p.heads_at_once};
      const int units = group.count * tiles;
      const bool last = round + 1 == rounds;
      Values<B> held[kHeld];
      PORT_UNROLL
      for (int i = 0; i < kHeld; ++i) {  // from the last warp down: the first ones have more queries and keys
        const int unit = i * kWarps + kWarps - 1 - b.warp;
        if (unit < units) project_values(b, share, group, unit, held[i]);
      }
      project_queries_and_keys(b, share, group);
      sync_block();
      attend(b, group);
      sync_block();
      PORT_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        const int unit = i * kWarps + kWarps - 1 - b.warp;
        if (unit < units) mix_values(b, group, unit, held[i], last);
      }
      PORT_LOOP
      for (int unit = kHeld * kWarps + kWarps - 1 - b.warp; unit < units; unit += kWarps) {
        Values<B> values;
        project_values(b, share, group, unit, values);
        mix_values(b, group, unit, values, last);
      }
    }
  }
}

// Eq. (9) for the block's hidden units: what normalise_for_mlp left to the MLP's partials. Barrier inside.
template <typename B>
PORT_DEVICE void mlp(const B& b, const unsigned char* share) {
  const Network& net = b.net;
  const int own = b.own_slots(), per_slot = net.hidden_tiles, tiles = net.width_ld / 16;
  const int ld = padded_row<uint16_t>(own * per_slot * 16), x_ld = padded_row<uint16_t>(net.width_ld);
  const uint16_t* rows[B::kPoses];
  rows_of_y(b, rows);
  PORT_LOOP
  for (int unit = b.warp; unit < own * per_slot; unit += kWarps) {
    const unsigned char* slot = share + static_cast<uint32_t>(unit / per_slot) * net.share_bytes;
    const int tile = unit % per_slot;
    const unsigned char* const weights[1] = {slot + net.fc1 + static_cast<uint32_t>(tile * tiles) * kTileBytes};
    const float* bias = reinterpret_cast<const float*>(slot + net.fc1_bias) + tile * 16 + b.lane / 4;
    Sums<B> sums[1];
    PORT_UNROLL
    for (int c = 0; c < B::kPoses * B::kCols; ++c) {
      PORT_UNROLL
      for (int i = 0; i < 4; ++i) sums[0][c][i] = bias[i / 2 * 8];
    }
    multiply(b, weights, tiles, rows, x_ld, sums);
    PORT_UNROLL
    for (int c = 0; c < B::kPoses * B::kCols; ++c) {
      PORT_UNROLL
      for (int i = 0; i < 4; ++i) sums[0][c][i] = fmaxf(sums[0][c][i], 0.0f);
    }
    PORT_UNROLL
    for (int which = 0; which < B::kPoses; ++which) store_rows(b, sums[0], which, b.qk(which) + unit * 16, ld);
  }
  sync_block();
  PORT_LOOP
  for (int unit = b.warp; unit < own * tiles; unit += kWarps) {
    const int slot = unit / tiles, tile = unit % tiles;
    const unsigned char* own_share = share + static_cast<uint32_t>(slot) * net.share_bytes;
    const unsigned char* const weights[1] = {own_share + net.fc2 + static_cast<uint32_t>(tile * per_slot) * kTileBytes};
    PORT_UNROLL
    for (int which = 0; which < B::kPoses; ++which) rows[which] = b.qk(which) + slot * per_slot * 16;
    Sums<B> sums[1];
    clear<B>(sums[0]);
    multiply(b, weights, per_slot, rows, ld, sums);
    store_partial(b, sums[0], true, b.first_slot() + slot, tile, false, true);
  }
}

}  // namespace port::kernels
