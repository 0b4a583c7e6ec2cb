// SPDX-License-Identifier: Apache-2.0
// The instantiations of line_kernel that one format has. Included by the lines_*.cu, each of which takes some.
#pragma once

#include "kernels/line_kernel.h"
#include "launch.h"

namespace port {

// Registers: two blocks of one pose share a processor (128 a thread) up to 24 joints; more joints and more poses take
// what a thread may have. csrc/cuda/resources.json has the limits that CI holds.
template <typename Format, int kCols>
const void* block_kernel_of(const LinePlan& plan) {
  using namespace kernels;
  constexpr int kShared = kCols <= 3 ? 2 : 1;
  if constexpr (!std::is_same_v<Format, Plain>) {
    if (plan.poses > 1) return reinterpret_cast<const void*>(&line_kernel<Format, kCols, kThroughputPoses, false, 1>);
  }
  return reinterpret_cast<const void*>(&line_kernel<Format, kCols, 1, false, kShared>);
}

template <typename Format>
const void* block_kernel_of(const LinePlan& plan) {
  return plan.columns == 2   ? block_kernel_of<Format, 2>(plan)
         : plan.columns == 3 ? block_kernel_of<Format, 3>(plan)
                             : block_kernel_of<Format, 4>(plan);
}

template <typename Format>
const void* cluster_kernel_of(const LinePlan& plan) {
  using kernels::line_kernel;
  return plan.columns == 2   ? reinterpret_cast<const void*>(&line_kernel<Format, 2, 1, true, 1>)
         : plan.columns == 3 ? reinterpret_cast<const void*>(&line_kernel<Format, 3, 1, true, 1>)
                             : reinterpret_cast<const void*>(&line_kernel<Format, 4, 1, true, 1>);
}

}  // namespace port
