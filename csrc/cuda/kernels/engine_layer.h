// SPDX-License-Identifier: Apache-2.0
// The whole line as a kernel that somebody else launches: TensorRT, from a plan that holds this kernel's PTX. A normal
// launch is all that such a host knows: pointers and whole numbers in a fixed order, at most 48 KB of shared memory (a
// kernel must be told of more before it is launched), no cluster.
//
// Split     One block per pose, as line_kernel.h's kBlock; block b has pose b.
// Memory    What is the same for every launch (network, rules, codec, layout) is a constant that the exporter writes
//           into the PTX: csrc/cuda/engine_layer.cpp makes its bytes. Weights are a tensor of the engine. Where shared
//           memory does not suffice, the partial sums lie in the pose's row of `state`, behind its mask: the engine's
//           own memory, in the L2 cache.
// Sync      As line_kernel.h; a block barrier orders the block's global memory, too.
// Numerics  As line_kernel.h, in the same order. The driver compiles it anew for one model: last bits may differ.
// Test: csrc/tests/emulated/test_engine_layer.cpp, tests/test_fused.py.
#pragma once

#include "engine_constants.h"
#include "line_kernel.h"

namespace port::kernels {

// In the order of the launch: the engine's tensors that are read, whole numbers, tensors that are written.
struct EngineArguments {
  const float* first;            // [B][N][H][W] or [B][N][2]
  const float* second;           // [B][2][3] or [B][N]
  const float* threshold;        // [1]
  const unsigned char* weights;  // on 16 bytes
  int32_t batch;
  float* joints;      // [B][N][2]
  float* confidence;  // [B][N]
  int32_t* state;     // [B][state_words]: the mask as 0 and 1, then partial sums
  float* std;         // [B][N]; null: not computed. The exporter writes that null into the PTX of a model without
};

// Block whose partial sums may lie elsewhere.
template <typename FormatT, int kColsT>
struct EngineBlock : Block<FormatT, kColsT, 1, false> {
  using Base = Block<FormatT, kColsT, 1, false>;
  float* partials;

  PORT_DEVICE float* partial(int, bool, int slot) const { return partials + slot * Base::kRows * row_ld(this->net); }
  PORT_DEVICE float* x(int i) const { return partial(i, true, 0); }
};

template <typename Format, int kCols>
PORT_DEVICE void run_engine_layer(const EngineConstants& constants, const EngineArguments& a) {
  using B = EngineBlock<Format, kCols>;
  const int64_t pose = block_index();
  LineParams p = constants.line;
  p.net.blob = a.weights;
  p.maps.data = constants.from_maps ? a.first : nullptr;
  p.affine = constants.from_maps ? a.second : nullptr;
  p.joints = a.first;
  p.confidence = a.second;
  p.threshold_at = a.threshold;
  p.out.joints = a.joints;
  p.out.confidence = a.confidence;
  p.out.std = a.std;
  p.batch = a.batch;
  int32_t* state = a.state + pose * constants.state_words;
  unsigned char* shared = dynamic_shared();
  float* partials = constants.partials_at ? reinterpret_cast<float*>(state + constants.partials_at)
                                          : reinterpret_cast<float*>(shared + p.layout.poses + p.layout.partial);
  const B b = {{p, p.net, shared, thread_index() / kLanes, thread_index() % kLanes, 0, 1}, partials};
  const Weights<B> weights = {b};
  if (pose >= p.batch) return;
  load_tables(b);
  read_poses(b, pose);
  sync_block();
  if (b.warp == 0) prepare_pose(p.rules, p.net.joints, p.net.channels, threshold_of(p), b.pose(0));
  sync_block();
  if (b.pose(0)->active) {
    run_network(b, weights);
    sync_block();
  }
  write_poses(b, pose);
  if (b.warp == 0 && b.lane < p.net.joints) state[b.lane] = static_cast<int32_t>(b.pose(0)->changed >> b.lane & 1u);
}

// extern "C" name and its constants, name_constants.
#define PORT_ENGINE_LAYER(name, Format, columns)                                                                     \
  extern "C" {                                                                                                       \
  PORT_CONSTANT port::kernels::EngineConstants name##_constants;                                                     \
  PORT_KERNEL(port::kernels::kLineThreads, (columns) <= 3 ? 2 : 1)                                                   \
  name(const float* first, const float* second, const float* threshold, const unsigned char* weights, int32_t batch, \
       float* joints, float* confidence, int32_t* state, float* std) {                                               \
    port::kernels::run_engine_layer<Format, columns>(                                                                \
        name##_constants, {first, second, threshold, weights, batch, joints, confidence, state, std});               \
  }                                                                                                                  \
  }

}  // namespace port::kernels
