// SPDX-License-Identifier: Apache-2.0
// The steps of the line that are no matrix products, by a block of kLineThreads threads for its poses: reading poses,
// embedding, LayerNorm, hop aggregation, head, results. layer_mma.h and layer_plain.h have the products between them,
// line_kernel.h puts it all in order.
//
// Split     A warp per row (joint) of a pose; lanes over its channels, two at a time.
// Memory    z [rows][D] float is the residual stream. Sums that other warps or blocks made lie as `partial`, one
//           [rows][D] per slot, until the next LayerNorm adds them in the order of the slots: the bits do not depend on
//           who made them.
// Sync      Each function says what must be synchronised before it; none ends with a barrier.
// Numerics  fp32.
// Test: csrc/tests/emulated/test_line.cpp.
#pragma once

#include "pose.h"

namespace port::kernels {

PORT_DEVICE void store_pair(uint16_t* to, uint32_t pair) { *reinterpret_cast<uint32_t*>(to) = pair; }

// Products read 16-bit values (Format: Half, Bfloat) or floats (Plain).
template <typename Format>
struct Stored {
  using Type = uint16_t;
  static PORT_DEVICE void pair(Type* to, float low, float high) { store_pair(to, Format::pack(low, high)); }
};
struct Plain {};
template <>
struct Stored<Plain> {
  using Type = float;
  static PORT_DEVICE void pair(Type* to, float low, float high) {
    to[0] = low;
    to[1] = high;
  }
};

template <typename FormatT, int kColsT, int kPosesT, bool kClusterT>
struct Block {
  using Format = FormatT;
  using T = typename Stored<Format>::Type;
  static constexpr int kCols = kColsT;    // tiles of eight joints
  static constexpr int kPoses = kPosesT;  // poses of a block
  static constexpr bool kCluster = kClusterT;
  static constexpr int kRows = 8 * kCols;

  const LineParams& p;
  const Network& net;
  unsigned char* shared;
  int warp, lane, rank, blocks;  // rank in the cluster and its blocks

  PORT_DEVICE int own_slots() const { return kCluster ? net.slots / blocks : net.slots; }
  PORT_DEVICE int first_slot() const { return rank * own_slots(); }
  PORT_DEVICE unsigned char* at(int pose, uint32_t offset) const {
    return shared + p.layout.poses + static_cast<uint32_t>(pose) * p.layout.pose_bytes + offset;
  }
  PORT_DEVICE Pose* pose(int i) const { return reinterpret_cast<Pose*>(at(i, 0)); }
  PORT_DEVICE float* z(int i) const { return reinterpret_cast<float*>(at(i, p.layout.z)); }
  PORT_DEVICE T* y(int i) const { return reinterpret_cast<T*>(at(i, p.layout.y)); }
  PORT_DEVICE float* vectors(int i) const { return reinterpret_cast<float*>(at(i, p.layout.y)); }
  PORT_DEVICE T* qk(int i) const { return reinterpret_cast<T*>(at(i, p.layout.qk)); }
  PORT_DEVICE T* weights(int i) const { return reinterpret_cast<T*>(at(i, p.layout.p)); }
  // mlp: those of the MLP, which lie apart where other blocks write them.
  PORT_DEVICE float* partial(int i, bool mlp, int slot) const {
    const uint32_t apart = kCluster && mlp ? p.layout.partial_bytes : 0u;
    return reinterpret_cast<float*>(at(i, p.layout.partial + apart)) + slot * kRows * row_ld(net);
  }
  // The normalised input of attention: in the MLP's first partial, which has just been read.
  PORT_DEVICE float* x(int i) const { return partial(i, true, 0); }
  PORT_DEVICE int y_ld() const { return padded_row<T>(net.hops * net.width_ld); }

  PORT_DEVICE const float* floats(uint32_t offset) const { return reinterpret_cast<const float*>(net.blob + offset); }
  PORT_DEVICE const int32_t* hop_start() const { return reinterpret_cast<const int32_t*>(shared + p.layout.table); }
  PORT_DEVICE const int32_t* hop_index() const { return hop_start() + net.hops * net.joints + 1; }
  PORT_DEVICE const float* hop_value() const { return reinterpret_cast<const float*>(hop_index() + net.hop_entries); }
  PORT_DEVICE const float* row_sum() const { return hop_value() + net.hop_entries; }  // [hops][kMaxJoints]
};

// Hop tables into shared memory. Barrier after it.
template <typename B>
PORT_DEVICE void load_tables(const B& b) {
  const auto* from = reinterpret_cast<const uint32_t*>(b.net.blob + b.net.tables);
  auto* to = reinterpret_cast<uint32_t*>(b.shared + b.p.layout.table);
  PORT_LOOP
  for (int i = thread_index(); i < static_cast<int>(table_words(b.net)); i += kLineThreads) to[i] = from[i];
}

// Stores to pose->joints and confidence, in all blocks of the cluster.
template <typename B>
PORT_DEVICE void put_joint(const B& b, Pose* pose, int j, float x, float y, float confidence) {
  PORT_LOOP
  for (int r = 0; r < (B::kCluster ? b.blocks : 1); ++r) {
    Pose* to = B::kCluster ? peer_shared(pose, r) : pose;
    to->joints[2 * j] = x;
    to->joints[2 * j + 1] = y;
    to->confidence[j] = confidence;
  }
}

// Joints and confidence of pose `first` and the following: from memory, or decoded, the maps spread over the cluster.
// Completes the cluster's first barrier. Barrier after it (of the
// cluster where they are decoded).
template <typename B>
PORT_DEVICE void read_poses(const B& b, int64_t first) {
  const LineParams& p = b.p;
  const int n = b.net.joints;
  if (!p.maps.data) {
    PORT_LOOP
    for (int i = thread_index(); i < B::kPoses * kMaxJoints; i += kLineThreads) {
      const int which = i / kMaxJoints, j = i % kMaxJoints;
      const int64_t at = (first + which) * n + j;
      if (j >= n || first + which >= p.batch) continue;
      Pose* pose = b.pose(which);
      pose->joints[2 * j] = p.joints[2 * at];
      pose->joints[2 * j + 1] = p.joints[2 * at + 1];
      pose->confidence[j] = p.confidence[at];
    }
    if constexpr (B::kCluster) cluster_wait();
    return;
  }
  // Joint j of the cluster is block j % blocks' own; a warp takes a quarter of a map.
  const int own = (n - b.rank + b.blocks - 1) / b.blocks;
  const auto offset_of = [&](int which, int j) {
    return (first + which) * p.maps.stride_b + static_cast<int64_t>(j) * p.maps.stride_n;
  };
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * own * kQuarters; unit += kWarps) {
    const int which = unit / (own * kQuarters), i = unit / kQuarters % own, quarter = unit % kQuarters;
    if (first + which >= p.batch) break;
    const Part part = survey_quarter(p.maps, offset_of(which, b.rank + i * b.blocks), quarter);
    if (b.lane == 0) reinterpret_cast<Part*>(b.vectors(which))[i * kQuarters + quarter] = part;
  }
  sync_block();
  if constexpr (B::kCluster) cluster_wait();  // every block of the cluster has begun
  PORT_LOOP
  for (int unit = thread_index(); unit < B::kPoses * own; unit += kLineThreads) {
    const int which = unit / own, i = unit % own, j = b.rank + i * b.blocks;
    if (first + which >= p.batch) break;
    const Part* parts = reinterpret_cast<const Part*>(b.vectors(which)) + i * kQuarters;
    const Joint joint = find_joint(p.maps, offset_of(which, j), parts);
    float x = joint.x, y = joint.y;
    if (p.affine) {
      const float* a = p.affine + (first + which) * 6;
      x = fmaf(a[0], joint.x, fmaf(a[1], joint.y, a[2]));
      y = fmaf(a[3], joint.x, fmaf(a[4], joint.y, a[5]));
    }
    put_joint(b, b.pose(which), j, x, y, joint.confidence);
  }
}

// z = U W_e with U = [H_1 in, ..., H_J in, masked]: eq. (5). Needs inputs and tables. Two phases around a barrier.
template <typename B>
PORT_DEVICE void embed(const B& b) {
  const Network& net = b.net;
  constexpr int kRankLd = 16;
  const int features = net.hops * net.channels;
  PORT_LOOP
  for (int i = thread_index(); i < B::kPoses * B::kRows * kRankLd; i += kLineThreads) {
    const int which = i / (B::kRows * kRankLd), n = i / kRankLd % B::kRows, r = i % kRankLd;
    const Pose& pose = *b.pose(which);
    const bool masked = net.mask_embedding && n < net.joints && (pose.masked >> n & 1u);
    float value = 0.0f;
    if (n < net.joints && r < features && !masked) {
      const int row = r / net.channels * net.joints + n, channel = r % net.channels;
      PORT_LOOP
      for (int e = b.hop_start()[row]; e < b.hop_start()[row + 1]; ++e) {
        value = fmaf(b.hop_value()[e], pose.inputs[b.hop_index()[e] * net.channels + channel], value);
      }
    }
    if (masked && r == features) value = 1.0f;
    b.vectors(which)[n * kRankLd + r] = value;
  }
  sync_block();
  const float* weights = b.floats(net.embed);
  PORT_LOOP
  for (int i = thread_index(); i < B::kPoses * B::kRows * net.width_ld; i += kLineThreads) {
    const int which = i / (B::kRows * net.width_ld), n = i / net.width_ld % B::kRows, c = i % net.width_ld;
    const float* u = b.vectors(which) + n * kRankLd;
    float sum = 0.0f;
    PORT_LOOP
    for (int r = 0; r < net.rank; ++r) sum = fmaf(u[r], weights[r * net.width_ld + c], sum);
    b.z(which)[n * row_ld(net) + c] = sum;
  }
}

// z += bias + the partial sums of all slots (partials: there are some). Answers the sum over the row's channels to all
// lanes. One warp.
template <typename B>
PORT_DEVICE float gather_row(const B& b, int which, int n, const float* bias, bool mlp, bool partials) {
  const Network& net = b.net;
  const int ld = row_ld(net);
  float* z = b.z(which) + n * ld;
  float total = 0.0f;
  PORT_LOOP
  for (int c = 2 * b.lane; c < net.width; c += 2 * kLanes) {
    float low = z[c], high = z[c + 1];
    if (partials) {
      low += bias[c];
      high += bias[c + 1];
      const float* from = b.partial(which, mlp, 0) + n * ld + c;
      PORT_LOOP
      for (int s = 0; s < net.slots; ++s, from += B::kRows * ld) low += from[0], high += from[1];
      z[c] = low;
      z[c + 1] = high;
    }
    total += low + high;
  }
  return warp_sum(total);
}

// The mean of row n of z, and 1 / its deviation.
template <typename B>
PORT_DEVICE float deviation(const B& b, const float* z, float mean) {
  float squares = 0.0f;
  PORT_LOOP
  for (int c = 2 * b.lane; c < b.net.width; c += 2 * kLanes) {
    const float low = z[c] - mean, high = z[c + 1] - mean;
    squares = fmaf(low, low, fmaf(high, high, squares));
  }
  return 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(b.net.width) + b.net.eps);
}

// x = (z - mean) / deviation for attention, after z has taken in the MLP of the layer before. bias: that layer's, null
// in the first. Needs z and the MLP's partials.
template <typename B>
PORT_DEVICE void normalise_for_attention(const B& b, const float* bias) {
  const int ld = row_ld(b.net), n_joints = b.net.joints;
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * n_joints; unit += kWarps) {
    const int which = unit / n_joints, n = unit % n_joints;
    const float mean = gather_row(b, which, n, bias, true, bias != nullptr) / static_cast<float>(b.net.width);
    const float* z = b.z(which) + n * ld;
    const float scale = deviation(b, z, mean);
    float* x = b.x(which) + n * ld;
    PORT_LOOP
    for (int c = 2 * b.lane; c < b.net.width; c += 2 * kLanes) {
      x[c] = (z[c] - mean) * scale;
      x[c + 1] = (z[c + 1] - mean) * scale;
    }
  }
}

// The same for the MLP, straight into what its product reads ([rows][padded_row(width_ld)] in y's place; rows beyond N
// and padding zero). Needs z and the attention's partials.
template <typename B>
PORT_DEVICE void normalise_for_mlp(const B& b, const float* bias) {
  const int ld = row_ld(b.net), to_ld = padded_row<typename B::T>(b.net.width_ld);
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * B::kRows; unit += kWarps) {
    const int which = unit / B::kRows, n = unit % B::kRows;
    typename B::T* to = b.y(which) + n * to_ld;
    const float* z = b.z(which) + n * ld;
    float mean = 0.0f, scale = 0.0f;
    if (n < b.net.joints) {
      mean = gather_row(b, which, n, bias, false, true) / static_cast<float>(b.net.width);
      scale = deviation(b, z, mean);
    }
    PORT_LOOP
    for (int c = 2 * b.lane; c < b.net.width_ld; c += 2 * kLanes) {
      const bool real = n < b.net.joints && c < b.net.width;
      const float low = real ? (z[c] - mean) * scale : 0.0f, high = real ? (z[c + 1] - mean) * scale : 0.0f;
      Stored<typename B::Format>::pair(to + c, low, high);
    }
  }
}

// y = [H_1 x, ..., H_J x], rows beyond N and padding zero. Needs x and that nobody reads y any more.
template <typename B>
PORT_DEVICE void aggregate(const B& b) {
  const Network& net = b.net;
  const int ld = row_ld(net);
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * B::kRows * net.hops; unit += kWarps) {
    const int which = unit / (B::kRows * net.hops), j = unit / B::kRows % net.hops, n = unit % B::kRows;
    const bool real = n < net.joints;
    const int begin = real ? b.hop_start()[j * net.joints + n] : 0;
    const int end = real ? b.hop_start()[j * net.joints + n + 1] : 0;
    const float* x = b.x(which);
    typename B::T* to = b.y(which) + n * b.y_ld() + j * net.width_ld;
    PORT_LOOP
    for (int c = 2 * b.lane; c < net.width_ld; c += 2 * kLanes) {
      float low = 0.0f, high = 0.0f;
      if (c < net.width) {
        PORT_LOOP
        for (int e = begin; e < end; ++e) {
          const float* from = x + b.hop_index()[e] * ld + c;
          low = fmaf(b.hop_value()[e], from[0], low);
          high = fmaf(b.hop_value()[e], from[1], high);
        }
      }
      Stored<typename B::Format>::pair(to + c, low, high);
    }
  }
}

// Of a network with a variance: log sigma of each joint, from z and the gated weights that head() leaves in the mean's
// place, to where the joint's first input was, which the same lane has read. A pass of its own: models without pay
// tests of a pointer.
template <typename B>
PORT_DEVICE void head_log_std(const B& b) {
  const Network& net = b.net;
  const int n_joints = net.joints;
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * n_joints; unit += kWarps) {
    const int which = unit / n_joints, n = unit % n_joints;
    const float *z = b.z(which) + n * row_ld(net), *gated = b.vectors(which);
    float sum = 0.0f;
    PORT_LOOP
    for (int c = b.lane; c < net.width; c += kLanes) sum = fmaf(z[c], gated[c], sum);
    sum = warp_sum(sum) + b.floats(net.head_bias)[2];
    if (b.lane == 0) b.pose(which)->inputs[n * net.channels] = sum;
  }
}

// Eqs. (10)-(11): z to pose->framed. Needs z and the last MLP's partials; barriers inside.
template <typename B>
PORT_DEVICE void head(const B& b, const float* bias) {
  const Network& net = b.net;
  const int n_joints = net.joints, width = net.width_ld, ld = row_ld(net);
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * n_joints; unit += kWarps) {
    gather_row(b, unit / n_joints, unit % n_joints, bias, true, true);
  }
  sync_block();
  // Of each pose: mean [width], later log sigma's gated weights; gated weights [2][width]; squeezed [se_width].
  PORT_LOOP
  for (int i = thread_index(); i < B::kPoses * width; i += kLineThreads) {
    const int which = i / width, c = i % width;
    float sum = 0.0f;
    PORT_LOOP
    for (int n = 0; n < n_joints && c < net.width; ++n) sum += b.z(which)[n * ld + c];
    b.vectors(which)[c] = sum / static_cast<float>(n_joints);
  }
  sync_block();
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * net.se_width; unit += kWarps) {
    const int which = unit / net.se_width, o = unit % net.se_width;
    const float* weights = b.floats(net.se1) + o * width;
    float sum = 0.0f;
    PORT_LOOP
    for (int c = b.lane; c < width; c += kLanes) sum = fmaf(b.vectors(which)[c], weights[c], sum);
    sum = warp_sum(sum) + b.floats(net.se1_bias)[o];
    if (b.lane == 0) b.vectors(which)[3 * width + o] = fmaxf(sum, 0.0f);
  }
  sync_block();
  PORT_LOOP
  for (int i = thread_index(); i < B::kPoses * width; i += kLineThreads) {
    const int which = i / width, c = i % width;
    const float* weights = b.floats(net.se2) + c;
    float sum = b.floats(net.se2_bias)[c];
    PORT_LOOP
    for (int o = 0; o < net.se_width; ++o) sum = fmaf(b.vectors(which)[3 * width + o], weights[o * width], sum);
    const float gate = 1.0f / (1.0f + exp2_approx(fminf(sum, 126.0f)));
    b.vectors(which)[width + c] = gate * b.floats(net.head)[c];
    b.vectors(which)[2 * width + c] = gate * b.floats(net.head)[width + c];
    if (b.p.out.std) b.vectors(which)[c] = gate * b.floats(net.head)[2 * width + c];
  }
  sync_block();
  PORT_LOOP
  for (int unit = b.warp; unit < B::kPoses * n_joints; unit += kWarps) {
    const int which = unit / n_joints, n = unit % n_joints;
    const float *z = b.z(which) + n * ld, *gated = b.vectors(which) + width;
    float right = 0.0f, down = 0.0f;
    PORT_LOOP
    for (int c = b.lane; c < net.width; c += kLanes) {
      right = fmaf(z[c], gated[c], right);
      down = fmaf(z[c], gated[width + c], down);
    }
    right = warp_sum(right) + b.floats(net.head_bias)[0];
    down = warp_sum(down) + b.floats(net.head_bias)[1];
    Pose* pose = b.pose(which);
    const float* input = pose->inputs + n * net.channels;
    if (b.lane == 0) {
      pose->framed[2 * n] = net.residual ? input[0] + right : right;
      pose->framed[2 * n + 1] = net.residual ? input[1] + down : down;
    }
  }
  if (b.p.out.std) head_log_std(b);
}

// To the caller's memory. Needs pose->framed where a pose is active.
template <typename B>
PORT_DEVICE void write_poses(const B& b, int64_t first) {
  const LineParams& p = b.p;
  PORT_LOOP
  for (int which = b.warp; which < B::kPoses; which += kWarps) {
    if (first + which >= p.batch || b.lane >= b.net.joints) continue;
    const Pose& pose = *b.pose(which);
    const int64_t at = (first + which) * b.net.joints + b.lane;
    const bool changed = pose.changed >> b.lane & 1u;
    float joint[2] = {pose.joints[2 * b.lane], pose.joints[2 * b.lane + 1]};
    if (changed) rebuild_joint(p.rules, pose, b.lane, joint);
    p.out.joints[2 * at] = joint[0];
    p.out.joints[2 * at + 1] = joint[1];
    if (p.out.confidence) p.out.confidence[at] = pose.confidence[b.lane];
    if (p.out.mask) p.out.mask[at] = changed ? 1 : 0;
    if (p.out.words) p.out.words[at] = changed ? 1 : 0;
    if (p.out.std) {
      p.out.std[at] = changed ? std_of(p.rules, pose.frame, pose.inputs[b.lane * b.net.channels]) : NAN;
    }
  }
}

}  // namespace port::kernels
