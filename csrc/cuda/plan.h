// SPDX-License-Identifier: Apache-2.0
// How a network runs on a GPU: which variant fits, in which shape, and which one a batch gets. Host only, no CUDA
// header. Test: csrc/tests/emulated/test_line.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "kernels/layout.h"
#include "port/cuda.hpp"

namespace port {

// What matters of a GPU.
struct DeviceLimits {
  int major = 9, minor = 0;                  // compute capability
  int processors = 132;                      // multiprocessors
  std::size_t shared_per_block = 227 << 10;  // that a block may ask for
  std::size_t shared_per_processor = 228 << 10;
};

// A launch of line_kernel<Format, columns, poses, blocks > 1>.
struct LinePlan {
  CudaVariant variant = CudaVariant::kBlock;
  int columns = 3;  // tiles of eight joints
  int poses = 1;    // of a block
  int blocks = 1;   // of a cluster
  int heads_at_once = 1, stages = 0;
  kernels::Layout layout{};
};

constexpr int kThroughputPoses = 2;

// Empty if the device has not what the variant needs, or too little shared memory for this network.
std::optional<LinePlan> plan_line(const kernels::Network& net, Precision precision, CudaVariant variant,
                                  const DeviceLimits& limits);

// The variant for a batch, of those that have a plan. Crossover points are predicted, not measured:
// benchmarks/KERNELS.md derives them.
CudaVariant choose_variant(std::int64_t batch, bool cluster, bool throughput, const DeviceLimits& limits);

}  // namespace port
