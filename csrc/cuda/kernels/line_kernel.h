// SPDX-License-Identifier: Apache-2.0
// The whole line in one launch: heatmaps [B][N][H][W] (or joints [B][N][2] and confidence [B][N]) to refined joints,
// confidence and mask. Decode, mask, frame, L encoder layers, head, unframe, blend: eqs. (1)-(14).
//
// Split     Block       one block per pose, all heads; every compute capability from 7.5 on.
//           Throughput  the same block with kPoses poses at a time, in a grid that stays: a weight tile is read from L2
//                       once for all of them.
//           Cluster     `blocks` blocks per pose, each with its slots of heads and hidden units and its share of the
//                       maps; everything between the products is done by all of them alike. 9.0 and later.
//           Inside a block of eight warps: block.h, layer_mma.h, layer_plain.h.
// Memory    Weights: kBlock and kThroughput read them from L2 where they are used. A cluster copies the layers' shares
//           into a ring of `stages` buffers by bulk copies, the first ones while the maps are being decoded; on 12.x,
//           whose blocks have 99 KB, it reads its own shares from L2 too.
//           Activations live in shared memory (layout.h), 75 KB a pose at the paper's size; global memory sees inputs
//           and results.
// Sync      Block barriers between steps, eight a layer. A cluster exchanges partial sums through distributed shared
//           memory twice a layer, each time with one cluster barrier: the attention's partials and the MLP's lie apart,
//           so that nobody overwrites what a slower block still reads. One more after decoding.
// Numerics  Products in Format with fp32 sums; everything else fp32. Partial sums are added in the order of slots, so
//           that all variants give the same bits.
// Limits    N <= 32, heads a multiple of slots, shared memory as layout.h says.
// Test: csrc/tests/emulated/test_line.cpp.
#pragma once

#include <type_traits>

#include "layer_mma.h"
#include "layer_plain.h"

namespace port::kernels {

// What other blocks or warps made is there, for all of them.
template <typename B>
PORT_DEVICE void exchange(const B&) {
  if constexpr (B::kCluster) {
    cluster_arrive();
    cluster_wait();
  } else {
    sync_block();
  }
}

// The shares of this block's slots, layer after layer: where they lie, or a ring of copies of them.
template <typename B>
struct Weights {
  const B& b;

  PORT_DEVICE static bool copied() { return B::kCluster && weights_are_copied(); }

  PORT_DEVICE const unsigned char* source(int layer) const {
    const auto share = static_cast<uint64_t>(layer) * static_cast<uint64_t>(b.net.slots) + b.first_slot();
    return b.net.blob + b.net.shares + share * b.net.share_bytes;
  }
  PORT_DEVICE unsigned char* stage(int layer) const {
    return b.shared + b.p.layout.ring + static_cast<uint32_t>(layer % b.p.stages) * b.p.layout.stage_bytes;
  }
  PORT_DEVICE CopyBarrier* barrier(int layer) const {
    return reinterpret_cast<CopyBarrier*>(b.shared) + layer % b.p.stages;
  }
  PORT_DEVICE void fetch(int layer) const {
    const uint32_t bytes = static_cast<uint32_t>(b.own_slots()) * b.net.share_bytes;
    bulk_copy(stage(layer), source(layer), bytes, barrier(layer));
  }

  // Before everything else. Barrier after it.
  PORT_DEVICE void begin() const {
    if (!copied() || thread_index() != 0) return;
    PORT_LOOP
    for (int s = 0; s < b.p.stages; ++s) init_barrier(barrier(s));
    make_barriers_visible();
    PORT_LOOP
    for (int s = 0; s < b.p.stages && s < b.net.layers; ++s) fetch(s);
  }
  // Until the share of `layer` is there.
  PORT_DEVICE const unsigned char* get(int layer) const {
    if (!copied()) return source(layer);
    wait_barrier(barrier(layer), static_cast<uint32_t>(layer / b.p.stages) & 1u);
    return stage(layer);
  }
  // Nobody reads the share of `layer` any more.
  PORT_DEVICE void release(int layer) const {
    if (!copied() || thread_index() != 0 || layer + b.p.stages >= b.net.layers) return;
    fence_bulk_copies();
    fetch(layer + b.p.stages);
  }
  // Instead of using any: a block must not end while copies are under way.
  PORT_DEVICE void abandon() const {
    if (!copied()) return;
    PORT_LOOP
    for (int s = 0; s < b.p.stages && s < b.net.layers; ++s) get(s);
  }
};

// Eqs. (4)-(11): pose->inputs to pose->framed. Needs them; barrier after it.
template <typename B>
PORT_DEVICE void run_network(const B& b, const Weights<B>& weights) {
  const Network& net = b.net;
  const float *out_bias = b.floats(net.out_bias), *fc2_bias = b.floats(net.fc2_bias);
  embed(b);
  sync_block();
  PORT_LOOP
  for (int l = 0; l < net.layers; ++l) {
    normalise_for_attention(b, l > 0 ? fc2_bias + (l - 1) * net.width_ld : nullptr);
    sync_block();
    aggregate(b);
    sync_block();
    const unsigned char* share = weights.get(l);
    if constexpr (std::is_same_v<typename B::Format, Plain>) {
      attention_plain(b, share);
    } else {
      attention(b, share);
    }
    exchange(b);
    normalise_for_mlp(b, out_bias + l * net.width_ld);
    sync_block();
    if constexpr (std::is_same_v<typename B::Format, Plain>) {
      mlp_plain(b, share);
    } else {
      mlp(b, share);
    }
    exchange(b);
    weights.release(l);
  }
  if (b.rank == 0) head(b, fc2_bias + (net.layers - 1) * net.width_ld);
}

PORT_DEVICE float threshold_of(const LineParams& p) { return p.threshold_at ? *p.threshold_at : p.threshold; }

// Grid: a multiple of the cluster's blocks. blocks_per_sm: what registers are rationed for.
template <typename Format, int kCols, int kPoses, bool kCluster, int kBlocksPerSm>
PORT_KERNEL(kLineThreads, kBlocksPerSm)
line_kernel(PORT_GRID_CONSTANT LineParams p) {
  using B = Block<Format, kCols, kPoses, kCluster>;
  const int rank = kCluster ? cluster_rank() : 0;
  const B b = {p, p.net, dynamic_shared(), thread_index() / kLanes, thread_index() % kLanes, rank, p.blocks};
  const Weights<B> weights = {b};
  if constexpr (kCluster) cluster_arrive();
  weights.begin();  // weights and tables are nobody's output: they do not wait for the kernel before
  load_tables(b);
  allow_next_kernel();
  wait_for_previous_kernel();
  PORT_LOOP
  for (int64_t first = static_cast<int64_t>(block_index() / p.blocks) * kPoses; first < p.batch;
       first += static_cast<int64_t>(block_count() / p.blocks) * kPoses) {
    read_poses(b, first);
    if (kCluster && p.maps.data) {
      exchange(b);
    } else {
      sync_block();
    }
    PORT_LOOP
    for (int which = b.warp; which < kPoses; which += kWarps) {
      if (first + which < p.batch) {
        prepare_pose(p.rules, p.net.joints, p.net.channels, threshold_of(p), b.pose(which));
      } else if (b.lane == 0) {
        b.pose(which)->active = 0;
        b.pose(which)->masked = b.pose(which)->changed = 0;
      }
    }
    sync_block();
    bool active = false;
    PORT_LOOP
    for (int which = 0; which < kPoses; ++which) active = active || b.pose(which)->active;
    if (active) {
      run_network(b, weights);
      sync_block();
    } else {
      weights.abandon();
    }
    if (rank == 0) write_poses(b, first);
    if constexpr (kCluster) break;   // the grid has a cluster for every pose
    if (!p.maps.data) sync_block();  // joints are overwritten next; maps take a barrier before they do
  }
}

}  // namespace port::kernels
