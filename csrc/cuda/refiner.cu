// SPDX-License-Identifier: Apache-2.0
// port::CudaRefiner: packed weights on a device, a plan per variant, and the launch of one kernel per call.
// Test: csrc/tests/gpu/, tests/test_cuda.py (on a GPU); csrc/tests/test_cuda_api.cpp (what it says without one).
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "arguments.h"
#include "check.h"
#include "checks.h"
#include "launch.h"
#include "line.h"
#include "pack.h"
#include "plan.h"
#include "port/cuda.hpp"

namespace port {
namespace {

constexpr CudaVariant kVariants[] = {CudaVariant::kBlock, CudaVariant::kCluster, CudaVariant::kThroughput};

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  PORT_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

DeviceLimits limits_of(int device) {
  int count = 0;
  require_device(cudaGetDeviceCount(&count), device);
  if (device < 0 || device >= count) {
    throw Error(ErrorCode::kUnavailable,
                "expected a CUDA device from 0 to " + std::to_string(count - 1) + ", got " + std::to_string(device));
  }
  DeviceLimits limits;
  limits.major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  limits.minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  limits.processors = attribute(cudaDevAttrMultiProcessorCount, device);
  limits.shared_per_block = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  limits.shared_per_processor =
      static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  return limits;
}

const void* kernel_for(Precision precision, const LinePlan& plan) {
  const bool half = precision == Precision::kFloat16;
  if (precision == Precision::kFloat32) return plain_block_kernel(plan);
  if (plan.blocks > 1) return half ? half_cluster_kernel(plan) : bfloat_cluster_kernel(plan);
  return half ? half_block_kernel(plan) : bfloat_block_kernel(plan);
}

const ModelData& require(const std::shared_ptr<const Model>& model) {
  if (!model) input_error("expected a model, got null: use port::Model::load");
  return model->data();
}

// What the processor's Refiner would be given.
Options line_options(const CudaOptions& options) {
  Options o;
  o.min_visible = options.min_visible;
  o.max_masked = options.max_masked;
  o.refine = options.refine;
  o.fusion = options.fusion;
  return o;
}

// Device memory of one device.
class DeviceMemory {
 public:
  DeviceMemory(int device, const std::vector<unsigned char>& bytes) : device_(device) {
    PORT_CUDA_CHECK(cudaMalloc(&data_, bytes.size()));
    const cudaError_t status = cudaMemcpy(data_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
    if (status == cudaSuccess) return;
    cudaFree(data_);
    cuda_failure(status, "copying the weights");
  }
  ~DeviceMemory() {
    int before = 0;
    const bool known = cudaGetDevice(&before) == cudaSuccess;
    cudaSetDevice(device_);
    cudaFree(data_);  // waits for the device
    if (known) cudaSetDevice(before);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  const unsigned char* data() const { return static_cast<const unsigned char*>(data_); }

 private:
  int device_;
  void* data_ = nullptr;
};

// One variant on this device.
struct Way {
  LinePlan plan;
  const void* kernel = nullptr;
  int resident = 1;  // blocks that the device holds at a time

  // Empty kernel where the variant is not to be had.
  Way(CudaVariant variant, const kernels::Network& net, Precision precision, const DeviceLimits& limits) {
    const auto found = plan_line(net, precision, variant, limits);
    if (!found) return;
    plan = *found;
    kernel = kernel_for(precision, plan);
    const int bytes = static_cast<int>(plan.layout.total);
    // All that a block may have: the limit belongs to the kernel, which other models use too.
    PORT_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(limits.shared_per_block)));
    PORT_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kernels::kLineThreads,
                                                                  static_cast<std::size_t>(bytes)));
    resident = std::max(resident * limits.processors, 1);
  }
};

}  // namespace

struct CudaRefiner::Impl {
  Impl(std::shared_ptr<const Model> m, const CudaOptions& o)
      : model((require(m), std::move(m))),
        options(o),
        rules(rules_of(line_settings(model->data().spec, line_options(o)))),
        codec(o.codec.value_or(model->codec())),
        temperature(o.temperature.value_or(model->temperature())),
        limits((check_positive("temperature", temperature), limits_of(o.device))) {
    const DeviceGuard guard(o.device);
    DeviceBlob blob = pack_for_device(model->data().spec, model->data().tensors, o.precision);
    net = blob.network;
    weight_bytes = blob.bytes.size();
    for (const CudaVariant variant : kVariants) ways.emplace_back(variant, net, o.precision, limits);
    if (o.variant ? !has(*o.variant) : !has(CudaVariant::kBlock)) {
      throw Error(ErrorCode::kUnavailable, describe_device() + " cannot run " + to_string(o.precision) +
                                               (o.variant ? std::string(" as ") + to_string(*o.variant) : "") +
                                               " for this network: leave variant empty, try another precision "
                                               "(bf16 needs 8.0, cluster 9.0), or use the processor (port::Refiner)");
    }
    memory = std::make_unique<DeviceMemory>(o.device, blob.bytes);
    net.blob = memory->data();
  }

  bool has(CudaVariant variant) const { return way(variant).kernel != nullptr; }
  const Way& way(CudaVariant variant) const { return ways[static_cast<std::size_t>(variant)]; }

  CudaVariant variant_for(std::int64_t batch) const {
    if (options.variant) return *options.variant;
    return choose_variant(batch, has(CudaVariant::kCluster), has(CudaVariant::kThroughput), limits);
  }

  std::string describe_device() const {
    return "CUDA device " + std::to_string(options.device) + " (compute capability " + std::to_string(limits.major) +
           "." + std::to_string(limits.minor) + ")";
  }

  // Everything but where the poses come from, the threshold and where results go.
  kernels::LineParams params(std::int64_t batch) const {
    kernels::LineParams p{};
    p.net = net;
    p.rules = rules;
    p.batch = batch;
    return p;
  }

  kernels::LineParams params(std::int64_t batch, float threshold, const Output& out) const {
    check_threshold(threshold);
    check_std(out, *model);
    require_joints(batch, out.joints);
    kernels::LineParams p = params(batch);
    p.out = results_of(out);
    p.threshold = threshold;
    return p;
  }

  kernels::LineParams params(std::int64_t batch, const CudaLayerOutput& out) const {
    require_joints(batch, out.joints);
    if (batch > 0 && !out.threshold) input_error("expected the threshold [1] in device memory, got a null pointer");
    check_std({nullptr, nullptr, nullptr, out.std}, *model);
    kernels::LineParams p = params(batch);
    p.out = {out.joints, out.confidence, nullptr, out.mask, out.std};
    p.threshold_at = out.threshold;
    return p;
  }

  static void require_joints(std::int64_t batch, const float* joints) {
    check_batch(batch);
    if (batch > 0 && !joints) input_error("expected memory for joints [B, N, 2], got a null pointer");
  }

  void refine(kernels::LineParams p, const float* joints, const float* confidence, CudaStream stream) const {
    if (p.batch == 0) return;
    if (!joints || !confidence) input_error("expected joints [B, N, 2] and confidence [B, N], got a null pointer");
    p.joints = joints;
    p.confidence = confidence;
    queue(&p, stream);
  }

  void run(kernels::LineParams p, const HeatmapView& heatmaps, const float* affine, CudaStream stream) const {
    if (p.batch == 0) return;
    p.maps = maps_of(heatmaps, codec, temperature);
    p.affine = affine;
    queue(&p, stream);
  }

  void queue(kernels::LineParams* p, CudaStream stream) const {
    const Way& chosen = way(variant_for(p->batch));
    const LinePlan& plan = chosen.plan;
    p->layout = plan.layout;
    p->blocks = plan.blocks;
    p->heads_at_once = plan.heads_at_once;
    p->stages = plan.stages;
    const std::int64_t groups = (p->batch + plan.poses - 1) / plan.poses;
    // A cluster per pose; blocks stay and take one group of poses after another.
    const std::int64_t most = plan.blocks > 1 ? 0x7fffffff / plan.blocks : chosen.resident;
    if (plan.blocks > 1 && groups > most) input_error("expected fewer poses for the cluster variant");
    Launch what;
    what.kernel = chosen.kernel;
    what.blocks = static_cast<unsigned>(std::min(groups, most) * plan.blocks);
    what.threads = kernels::kLineThreads;
    what.cluster = static_cast<unsigned>(plan.blocks);
    what.shared_bytes = plan.layout.total;
    what.overlap = limits.major >= 9;
    const DeviceGuard guard(options.device);
    launch(what, p, stream);
  }

  const std::shared_ptr<const Model> model;
  const CudaOptions options;
  const kernels::LineRules rules;
  const Codec codec;
  const float temperature;
  const DeviceLimits limits;
  kernels::Network net{};
  std::size_t weight_bytes = 0;
  std::vector<Way> ways;
  std::unique_ptr<DeviceMemory> memory;
};

CudaRefiner::CudaRefiner(std::shared_ptr<const Model> model, const CudaOptions& options)
    : impl_(std::make_unique<Impl>(std::move(model), options)) {}
CudaRefiner::~CudaRefiner() = default;
CudaRefiner::CudaRefiner(CudaRefiner&&) noexcept = default;
CudaRefiner& CudaRefiner::operator=(CudaRefiner&&) noexcept = default;

void CudaRefiner::refine(const float* joints, const float* confidence, std::int64_t batch, float threshold,
                         const Output& out, CudaStream stream) const {
  impl_->refine(impl_->params(batch, threshold, out), joints, confidence, stream);
}

void CudaRefiner::refine(const float* joints, const float* confidence, std::int64_t batch, const CudaLayerOutput& out,
                         CudaStream stream) const {
  impl_->refine(impl_->params(batch, out), joints, confidence, stream);
}

void CudaRefiner::run(const HeatmapView& heatmaps, const float* affine, float threshold, const Output& out,
                      CudaStream stream) const {
  check_view(heatmaps);
  check_joints(heatmaps, *impl_->model);
  impl_->run(impl_->params(heatmaps.batch, threshold, out), heatmaps, affine, stream);
}

void CudaRefiner::run(const HeatmapView& heatmaps, const float* affine, const CudaLayerOutput& out,
                      CudaStream stream) const {
  check_view(heatmaps);
  check_joints(heatmaps, *impl_->model);
  impl_->run(impl_->params(heatmaps.batch, out), heatmaps, affine, stream);
}

const Model& CudaRefiner::model() const { return *impl_->model; }
int CudaRefiner::device() const { return impl_->options.device; }
Precision CudaRefiner::precision() const { return impl_->options.precision; }
CudaVariant CudaRefiner::variant(std::int64_t batch) const { return impl_->variant_for(batch); }
std::size_t CudaRefiner::weight_bytes() const { return impl_->weight_bytes; }

std::string CudaRefiner::description() const {
  return impl_->describe_device() + ", " + to_string(impl_->options.precision) + ", " + to_string(variant(1)) +
         " for one pose";
}

}  // namespace port
