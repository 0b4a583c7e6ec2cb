// SPDX-License-Identifier: Apache-2.0
// The whole line as one kernel for somebody else to launch: as a layer of a TensorRT plan that holds the kernel's PTX.
// Such a host knows a normal launch with pointers and whole numbers, and at most 48 KB of shared memory. What is here
// needs neither a GPU nor a build with CUDA; the PTX comes from one that has: layers/port_line_*.ptx beside the Python
// module.
//
// A launch of B poses: a grid of B blocks, `threads` threads, `shared_bytes` of dynamic shared memory; arguments
//   const float* heatmaps [B][N][H][W]    or  joints [B][N][2]
//   const float* affine [B][2][3]         or  confidence [B][N]
//   const float* threshold [1]
//   const void*  weights [weights.size()] on 16 bytes
//   int32        B
//   float*       joints [B][N][2]
//   float*       confidence [B][N]
//   int32*       state [B][state_words], of each row the first N: the mask, 0 or 1
//   float*       std [B][N], of models with a variance as port::Output has it. Others have no such argument: their PTX
//                gets null in its place before it is used
// The kernel is compiled for any model: `constants` are the bytes of its only constant, port_line_constants, to be put
// into the PTX before it is used. Results are those of CudaRefiner with CudaVariant::kBlock, but for the last bits,
// which are the driver's compiler's. Test: csrc/tests/emulated/test_engine_layer.cpp, tests/test_fused.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "port/port.hpp"

namespace port {

constexpr std::size_t kEngineLayerSharedBytes = 48 << 10;  // that a kernel may have without being told

struct EngineLayerOptions {
  Precision precision = Precision::kFloat32;  // of the encoder's products
  int height = 0, width = 0;                  // of heatmaps, 1..4096; 0, 0: from joints and confidence
};

struct EngineLayer {
  int columns = 0;  // tiles of eight joints that the kernel is compiled for: 2, 3 or 4
  int threads = 0;
  std::size_t shared_bytes = 0;
  int state_words = 0;
  bool std = false;                               // the argument of that name is there
  std::vector<unsigned char> weights, constants;  // a multiple of 4 bytes each
};

// Error(kInput): a size out of range; Error(kUnavailable): the network needs more shared memory than a layer may have;
// Error(kModelFile): as CudaRefiner.
EngineLayer make_engine_layer(const Model& model, const EngineLayerOptions& options);

}  // namespace port
