// SPDX-License-Identifier: Apache-2.0
// port::Refiner: the whole line over a batch, in groups of poses, on the object's threads. Test:
// csrc/tests/test_refiner.cpp.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "aligned.h"
#include "checks.h"
#include "decode_pose.h"
#include "dispatch.h"
#include "line.h"
#include "network.h"
#include "thread_pool.h"

namespace port {
namespace {

constexpr std::int64_t kGroup = 16;  // poses per call of the network at most

// Everything that one thread writes while it works on a group.
struct Workspace {
  Workspace(const LineSettings& s, std::size_t network_bytes) : Workspace(s, network_bytes, kGroup * s.joints) {}

  std::atomic<bool> taken{false};
  Workspace* next = nullptr;
  PoseFrame frames[kGroup];
  int poses[kGroup];  // of those that go through the network: which of the group
  std::size_t bytes;
  AlignedBuffer network, memory;
  float *inputs, *framed, *joints, *confidence, *scratch;  // [g][N][channels], [g][N][2], [g][N][2], [g][N], -
  float* log_std;                                          // [g][N]
  std::uint8_t *mask, *changed;                            // [g][N]

 private:
  Workspace(const LineSettings& s, std::size_t network_bytes, std::int64_t rows)
      : bytes(network_bytes + floats(s, rows) * sizeof(float) + 2 * static_cast<std::size_t>(rows)),
        network(network_bytes),
        memory(bytes - network_bytes) {
    scratch = memory.as<float>();  // first: it wants the alignment
    inputs = scratch + kDecodeScratch;
    framed = inputs + rows * s.channels;
    joints = framed + rows * 2;
    confidence = joints + rows * 2;
    log_std = confidence + rows;
    mask = reinterpret_cast<std::uint8_t*>(log_std + rows);
    changed = mask + rows;
  }

  static std::size_t floats(const LineSettings& s, std::int64_t rows) {
    return static_cast<std::size_t>(kDecodeScratch + rows * (s.channels + 2 + 2 + 1 + 1));
  }
};

// Workspaces that only grow in number: one per thread that has ever computed at the same time. Lock-free, so that a
// fork in the middle of another thread's call leaves nothing locked.
class WorkspaceList {
 public:
  WorkspaceList(const LineSettings& settings, std::size_t network_bytes, int count)
      : settings_(settings), network_bytes_(network_bytes) {
    for (int i = 0; i < count; ++i) give_back(add());
  }
  ~WorkspaceList() {
    for (Workspace* w = head_.load(); w != nullptr;) delete std::exchange(w, w->next);
  }
  WorkspaceList(const WorkspaceList&) = delete;
  WorkspaceList& operator=(const WorkspaceList&) = delete;

  Workspace* take() {
    for (Workspace* w = head_.load(); w != nullptr; w = w->next) {
      if (!w->taken.exchange(true)) return w;
    }
    return add();
  }
  static void give_back(Workspace* workspace) { workspace->taken.store(false); }
  std::size_t bytes() const { return head_.load()->bytes; }

 private:
  Workspace* add() {
    auto* workspace = new Workspace(settings_, network_bytes_);
    workspace->taken.store(true);
    workspace->next = head_.load();
    while (!head_.compare_exchange_weak(workspace->next, workspace)) {
    }
    return workspace;
  }

  const LineSettings settings_;
  const std::size_t network_bytes_;
  std::atomic<Workspace*> head_{nullptr};
};

// One call of refine() or run().
struct Call {
  const void* self;
  const float* joints;      // refine(): [B][N][2]
  const float* confidence;  // refine(): [B][N]
  const HeatmapView* view;  // run(), else null
  const float* affine;      // run(): [B][2][3] or null
  float threshold;
  Output out;
  std::int64_t batch, group;
};

float usable_temperature(float temperature) {
  check_positive("temperature", temperature);
  return temperature;
}

const ModelData& require(const std::shared_ptr<const Model>& model) {
  if (!model) input_error("expected a model, got null: use port::Model::load");
  return model->data();
}

}  // namespace

struct Refiner::Impl {
  Impl(std::shared_ptr<const Model> m, const Options& options)
      : settings(line_settings(require(m).spec, options)),
        model(std::move(m)),
        isa(select_isa(options.isa)),
        precision(options.precision),
        decode(decode_for(isa), options.codec.value_or(model->codec()),
               usable_temperature(options.temperature.value_or(model->temperature()))),
        network(make_network(model->data().spec, model->data().tensors, isa, precision)),
        pool(resolve_threads(options.threads)),
        workspaces(settings, network->workspace_bytes(), pool.threads()) {}

  void run(Call& call) {
    call.self = this;
    // Small batches are cut so that every thread gets some; a pose's result does not depend on its group.
    call.group = std::clamp<std::int64_t>((call.batch + pool.threads() - 1) / pool.threads(), 1, kGroup);
    pool.run((call.batch + call.group - 1) / call.group, pool.threads(), &Impl::work, &call);
  }

  static void work(void* context, std::int64_t index) {
    const auto& call = *static_cast<const Call*>(context);
    auto& self = *static_cast<Impl*>(const_cast<void*>(call.self));
    Workspace* workspace = self.workspaces.take();
    struct Return {
      Workspace* w;
      ~Return() { WorkspaceList::give_back(w); }
    } guard{workspace};
    const std::int64_t first = index * call.group;
    self.compute(call, first, std::min(call.group, call.batch - first), *workspace);
  }

  // Poses first .. first + count - 1.
  void compute(const Call& call, std::int64_t first, std::int64_t count, Workspace& w) const {
    const std::int64_t n = settings.joints;
    if (call.view) decode_group(call, first, count, w);
    const float* joints = call.view ? w.joints : call.joints + first * n * 2;
    const float* confidence = call.view ? w.confidence : call.confidence + first * n;
    float* out_joints = call.out.joints + first * n * 2;
    float* out_confidence = call.out.confidence ? call.out.confidence + first * n : nullptr;
    std::uint8_t* out_mask = call.out.mask ? call.out.mask + first * n : nullptr;
    float* out_std = call.out.std ? call.out.std + first * n : nullptr;

    int passing = 0;
    for (std::int64_t b = 0; b < count; ++b) {
      const std::int64_t row = passing * n;
      if (prepare_pose(settings, joints + b * n * 2, confidence + b * n, call.threshold,
                       w.inputs + row * settings.channels, w.mask + row, w.changed + row, &w.frames[passing])) {
        w.poses[passing++] = static_cast<int>(b);
      }
    }
    float* log_std = out_std ? w.log_std : nullptr;
    if (passing > 0) network->forward(w.inputs, w.mask, w.changed, passing, w.framed, log_std, w.network.as<void>());

    if (out_joints != joints) std::memcpy(out_joints, joints, static_cast<std::size_t>(count * n) * 2 * sizeof(float));
    if (out_confidence && out_confidence != confidence) {
      std::memcpy(out_confidence, confidence, static_cast<std::size_t>(count * n) * sizeof(float));
    }
    if (out_mask) std::memset(out_mask, 0, static_cast<std::size_t>(count * n));
    if (out_std) std::fill_n(out_std, count * n, std::numeric_limits<float>::quiet_NaN());
    for (int p = 0; p < passing; ++p) {
      float* pose = out_joints + w.poses[p] * n * 2;  // holds the detector's joints
      finish_pose(settings, w.frames[p], w.framed + p * n * 2, w.changed + p * n, pose, pose);
      if (out_mask) std::memcpy(out_mask + w.poses[p] * n, w.changed + p * n, static_cast<std::size_t>(n));
      if (out_std) finish_std(settings, w.frames[p], w.log_std + p * n, w.changed + p * n, out_std + w.poses[p] * n);
    }
  }

  void decode_group(const Call& call, std::int64_t first, std::int64_t count, Workspace& w) const {
    const int n = settings.joints;
    const MapShape shape = decode.shape_of(*call.view);
    for (std::int64_t b = 0; b < count; ++b) {
      float* joints = w.joints + b * n * 2;
      decode_joints(decode.kernel, shape, *call.view, first + b, 0, n, w.scratch, joints, w.confidence + b * n);
      if (call.affine) to_image(call.affine + (first + b) * 6, n, joints);
    }
  }

  const LineSettings settings;
  const std::shared_ptr<const Model> model;
  const Isa isa;
  const Precision precision;
  const DecodeSettings decode;
  const std::unique_ptr<Network> network;
  ThreadPool pool;
  WorkspaceList workspaces;
};

Refiner::Refiner(std::shared_ptr<const Model> model, const Options& options)
    : impl_(std::make_unique<Impl>(std::move(model), options)) {}
Refiner::~Refiner() = default;
Refiner::Refiner(Refiner&&) noexcept = default;
Refiner& Refiner::operator=(Refiner&&) noexcept = default;

void Refiner::refine(const float* joints, const float* confidence, std::int64_t batch, float threshold,
                     const Output& out) const {
  check_threshold(threshold);
  check_batch(batch);
  if (batch == 0) return;
  if (!joints || !confidence) input_error("expected joints [B, N, 2] and confidence [B, N], got a null pointer");
  if (!out.joints) input_error("expected memory for joints [B, N, 2], got a null pointer");
  check_std(out, model());
  Call call{nullptr, joints, confidence, nullptr, nullptr, threshold, out, batch, 1};
  impl_->run(call);
}

void Refiner::run(const HeatmapView& heatmaps, const float* affine, float threshold, const Output& out) const {
  check_threshold(threshold);
  check_host_view(heatmaps);
  check_joints(heatmaps, model());
  if (heatmaps.batch == 0) return;
  if (!out.joints) input_error("expected memory for joints [B, N, 2], got a null pointer");
  check_std(out, model());
  Call call{nullptr, nullptr, nullptr, &heatmaps, affine, threshold, out, heatmaps.batch, 1};
  impl_->run(call);
}

const Model& Refiner::model() const { return *impl_->model; }
int Refiner::threads() const { return impl_->pool.threads(); }
Isa Refiner::isa() const { return impl_->isa; }
Precision Refiner::precision() const { return impl_->precision; }
std::size_t Refiner::weight_bytes() const { return impl_->network->weight_bytes(); }
std::size_t Refiner::workspace_bytes() const { return impl_->workspaces.bytes(); }

}  // namespace port
