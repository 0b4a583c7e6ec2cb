// SPDX-License-Identifier: Apache-2.0
// Every line kernel that the library has, compiled for the host, chosen as csrc/cuda/refiner.cu chooses.
#include "emulated_line.h"

#include <device/intrinsics.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/line_kernel.h"

namespace port_test {
namespace {

using port::Precision;
using namespace port::kernels;

template <typename Format, int kCols>
void run_kernel(const LineParams& params, const port::LinePlan& plan) {
  if constexpr (!std::is_same_v<Format, Plain>) {
    if (plan.blocks > 1) return line_kernel<Format, kCols, 1, true, 1>(params);
    if (plan.poses > 1) return line_kernel<Format, kCols, port::kThroughputPoses, false, 1>(params);
  }
  line_kernel<Format, kCols, 1, false, 1>(params);
}

template <typename Format>
void run_kernel(const LineParams& params, const port::LinePlan& plan) {
  if (plan.columns == 2) return run_kernel<Format, 2>(params, plan);
  if (plan.columns == 3) return run_kernel<Format, 3>(params, plan);
  run_kernel<Format, 4>(params, plan);
}

}  // namespace

port::emulated::Counts launch_line(LineParams params, const Run& run) {
  const auto plan = port::plan_line(params.net, run.precision, run.variant, run.limits);
  if (!plan) {
    std::printf("no plan for this variant\n");
    std::abort();
  }
  params.layout = plan->layout;
  params.blocks = plan->blocks;
  params.heads_at_once = plan->heads_at_once;
  params.stages = plan->stages;
  port::emulated::Launch launch;
  int groups = static_cast<int>((params.batch + plan->poses - 1) / plan->poses);
  if (run.grid > 0 && plan->blocks == 1 && run.grid < groups) groups = run.grid;
  launch.blocks = groups * plan->blocks;
  launch.cluster = plan->blocks;
  launch.threads = kLineThreads;
  launch.shared_bytes = plan->layout.total;
  launch.seed = run.seed;
  launch.major = run.limits.major;
  launch.skip_barrier = run.skip_barrier;
  launch.skip_cluster_barrier = run.skip_cluster_barrier;
  launch.tolerant = run.tolerant;
  return port::emulated::launch(launch, [&] {
    if (run.precision == Precision::kFloat32) return run_kernel<Plain>(params, *plan);
    if (run.precision == Precision::kFloat16) return run_kernel<port::device::Half>(params, *plan);
    run_kernel<port::device::Bfloat>(params, *plan);
  });
}

}  // namespace port_test
