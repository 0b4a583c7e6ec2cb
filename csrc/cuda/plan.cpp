// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

namespace port {
namespace {

using kernels::Layout;
using kernels::Network;

Layout layout_of(const Network& net, Precision precision, const LinePlan& plan) {
  return precision == Precision::kFloat32
             ? kernels::make_layout<float>(net, 8 * plan.columns, plan.poses, plan.blocks, plan.heads_at_once, 1)
             : kernels::make_layout<std::uint16_t>(net, 8 * plan.columns, plan.poses, plan.blocks, plan.heads_at_once,
                                                   plan.stages);
}

// As many heads between two barriers, and as many layers of weights, as fit. copies: the kernel reads copies of weights
// (device::weights_are_copied).
bool fit(const Network& net, Precision precision, bool copies, std::size_t limit, LinePlan* plan) {
  const int own_slots = net.slots / plan->blocks;
  const int most = !copies ? 0 : net.layers > 1 ? 2 : 1, fewest = copies ? 1 : 0;
  for (plan->stages = most; plan->stages >= fewest; --plan->stages) {
    for (plan->heads_at_once = own_slots; plan->heads_at_once >= 1; plan->heads_at_once /= 2) {
      plan->layout = layout_of(net, precision, *plan);
      if (plan->layout.total <= limit) return true;
    }
  }
  return false;
}

}  // namespace

std::optional<LinePlan> plan_line(const Network& net, Precision precision, CudaVariant variant,
                                  const DeviceLimits& limits) {
  LinePlan plan;
  plan.variant = variant;
  plan.columns = net.joints <= 16 ? 2 : net.joints <= 24 ? 3 : 4;
  if (precision == Precision::kBfloat16 && limits.major < 8) return std::nullopt;
  if (precision == Precision::kFloat32 && variant != CudaVariant::kBlock) return std::nullopt;
  if (variant == CudaVariant::kThroughput) plan.poses = kThroughputPoses;
  if (variant == CudaVariant::kCluster) {
    if (limits.major < 9 || net.slots < 2) return std::nullopt;
    plan.blocks = net.slots;
  }
  const bool copies = plan.blocks > 1 && limits.major < 12;
  if (!fit(net, precision, copies, limits.shared_per_block, &plan)) return std::nullopt;
  return plan;
}

CudaVariant choose_variant(std::int64_t batch, bool cluster, bool throughput, const DeviceLimits& limits) {
  // A cluster keeps four blocks busy for a pose: worth it while there are processors to spare. Several poses per block
  // save weight traffic, but make a wave of blocks longer: worth it from some waves of single poses on.
  if (cluster && batch * 4 <= limits.processors) return CudaVariant::kCluster;
  if (throughput && batch >= std::int64_t{4} * limits.processors) return CudaVariant::kThroughput;
  return CudaVariant::kBlock;
}

}  // namespace port
