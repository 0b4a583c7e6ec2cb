// SPDX-License-Identifier: Apache-2.0
// Which kernel a plan means, and its launch. The kernels are compiled in files of their own, one per kind, so that they
// compile side by side. Only .cu files include it. Test: csrc/tests/gpu/, tests/test_cuda.py (on a GPU).
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"

namespace port {

// The address of line_kernel<...> for a plan, by format: one lines_*.cu each.
const void* half_block_kernel(const LinePlan& plan);
const void* bfloat_block_kernel(const LinePlan& plan);
const void* plain_block_kernel(const LinePlan& plan);
const void* half_cluster_kernel(const LinePlan& plan);
const void* bfloat_cluster_kernel(const LinePlan& plan);

struct Launch {
  const void* kernel = nullptr;
  unsigned blocks = 0, threads = 0, cluster = 1;
  std::size_t shared_bytes = 0;
  bool overlap = false;  // may begin before the kernel before it has ended: compute capability 9.0
};

// Queues kernel(params) on the current device; params is copied. Error(kUnavailable) if CUDA refuses.
void launch(const Launch& what, const void* params, cudaStream_t stream);

}  // namespace port
