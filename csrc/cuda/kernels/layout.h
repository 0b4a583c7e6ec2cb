// SPDX-License-Identifier: Apache-2.0
// Shared memory of the line kernels: what is where, for the host that asks for it and the device that uses it.
// Test: csrc/tests/emulated/test_line.cpp.
#pragma once

#include "params.h"

namespace port::kernels {

constexpr int kLineThreads = 256;
constexpr int kWarps = kLineThreads / kLanes;

// The hop matrices as sparse rows, at Network::tables and copied to shared memory: start [hops * N + 1], then index and
// value [entries], then H_j 1 as row_sum [hops][kMaxJoints].
PORT_BOTH uint32_t table_words(const Network& net) {
  return static_cast<uint32_t>(net.hops * net.joints + 1) + 2 * net.hop_entries +
         static_cast<uint32_t>(net.hops * kMaxJoints);
}

struct Frame {
  float origin[2];  // the first visible joint, pixels
  float centre[2];  // mean of the visible joints, from there
  float unit;       // visible: pixels per unit
  float root[2];    // paper: framed root before it was subtracted
  float turn[2];    // paper: cosine and sine
};

// One pose on its way through the line.
struct Pose {
  float joints[2 * kMaxJoints], confidence[kMaxJoints];  // the detector's
  // The network's. With a variance, log sigma comes into the place of each joint's first input.
  float inputs[3 * kMaxJoints], framed[2 * kMaxJoints];
  uint32_t masked, changed;  // a bit per joint
  int32_t active;            // it goes through the network
  Frame frame;
};

// Rows of the activations: joints padded to 8.
PORT_BOTH int row_ld(const Network& net) { return net.width_ld + 4; }  // floats: 4 banks on, row after row
template <typename T>
PORT_BOTH int padded_row(int columns) {  // so that eight rows fall on different banks
  return columns + 16 / static_cast<int>(sizeof(T));
}
PORT_BOTH uint32_t aligned(uint32_t bytes) { return (bytes + 127u) / 128u * 128u; }
PORT_BOTH uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// T: what products read, 16-bit or float. rows: a multiple of 8. cluster: blocks that share the slots; 1: none.
template <typename T>
PORT_BOTH Layout make_layout(const Network& net, int rows, int poses, int cluster, int heads_at_once, int stages) {
  const auto n = static_cast<uint32_t>(rows), size = static_cast<uint32_t>(sizeof(T));
  const auto row = static_cast<uint32_t>(row_ld(net)) * 4u;
  const auto y_row = static_cast<uint32_t>(padded_row<T>(net.hops * net.width_ld)) * size;
  const auto head_row = static_cast<uint32_t>(padded_row<T>(net.head_ld)) * size;
  const int own_slots = net.slots / cluster;
  const auto hidden_row = static_cast<uint32_t>(padded_row<T>(own_slots * net.hidden_tiles * 16)) * size;
  const auto p_row = static_cast<uint32_t>(padded_row<T>((rows + 15) / 16 * 16)) * size;
  // float: the values of a head lie beside its queries and keys.
  const uint32_t value_bytes = size == 4 ? n * row : 0u;
  Layout at;
  uint32_t used = 128;  // copy barriers
  at.table = used;
  used += aligned(4u * table_words(net));
  at.ring = used;
  at.stage_bytes = cluster > 1 ? aligned(static_cast<uint32_t>(own_slots) * net.share_bytes) : 0u;
  used += at.stage_bytes * static_cast<uint32_t>(stages);
  at.poses = used;
  uint32_t pose = aligned(sizeof(Pose));
  at.z = pose;
  pose += aligned(n * row);
  at.y = pose;  // also: parts of maps (20 bytes a quarter), the embedding's factors, the head's vectors
  const auto vectors = static_cast<uint32_t>(4 * net.width_ld + net.se_width) * 4u;
  pose += aligned(larger(larger(n * y_row, vectors), kMaxJoints * 4u * 20u));
  at.qk = pose;  // queries, then keys; later the MLP's hidden units
  pose += aligned(larger(static_cast<uint32_t>(heads_at_once) * 2u * n * head_row + value_bytes, n * hidden_row));
  at.p = pose;
  pose += aligned(static_cast<uint32_t>(heads_at_once) * n * p_row);
  at.partial = pose;  // per slot; of the attention and of the MLP apart where other blocks write them
  at.partial_bytes = static_cast<uint32_t>(net.slots) * n * row;
  pose += aligned(at.partial_bytes * (cluster > 1 ? 2u : 1u));
  at.pose_bytes = pose;
  at.total = used + pose * static_cast<uint32_t>(poses);
  return at;
}

}  // namespace port::kernels
