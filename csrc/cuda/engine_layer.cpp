// SPDX-License-Identifier: Apache-2.0
#include "port/engine_layer.hpp"

#include <cstring>
#include <optional>
#include <utility>

#include "arguments.h"
#include "checks.h"
#include "kernels/engine_constants.h"
#include "line.h"
#include "model.h"
#include "pack.h"

namespace port {
namespace {

using kernels::EngineConstants;
using kernels::Network;

constexpr int kStateAlign = 32;  // words: rows and partial sums on 128 bytes

// As many heads between two barriers as fit; partial sums out of shared memory only where they do not fit into it.
struct Fit {
  kernels::Layout layout{};
  int heads_at_once = 1;
  bool outside = false;
};

std::optional<Fit> fit(const Network& net, Precision precision, int columns) {
  for (const bool outside : {false, true}) {
    for (int heads = net.slots; heads >= 1; heads /= 2) {
      Fit found;
      found.outside = outside;
      found.heads_at_once = heads;
      found.layout = precision == Precision::kFloat32
                         ? kernels::make_layout<float>(net, 8 * columns, 1, 1, heads, 1)
                         : kernels::make_layout<std::uint16_t>(net, 8 * columns, 1, 1, heads, 1);
      if (outside) found.layout.total -= kernels::aligned(found.layout.partial_bytes);
      if (found.layout.total <= kEngineLayerSharedBytes) return found;
    }
  }
  return std::nullopt;
}

}  // namespace

EngineLayer make_engine_layer(const Model& model, const EngineLayerOptions& options) {
  const ModelData& data = model.data();
  const bool from_maps = options.height != 0 || options.width != 0;
  if (from_maps) {
    check_view(HeatmapView::dense(nullptr, DType::kFloat32, 0, model.joints(), options.height, options.width));
  }
  DeviceBlob blob = pack_for_device(data.spec, data.tensors, options.precision);
  const int joints = blob.network.joints;
  EngineLayer layer;
  layer.columns = joints <= 16 ? 2 : joints <= 24 ? 3 : 4;
  const std::optional<Fit> found = fit(blob.network, options.precision, layer.columns);
  if (!found) {
    throw Error(ErrorCode::kUnavailable,
                "this network does not fit the 48 KB of shared memory that a layer of an engine may have: use another "
                "precision or a smaller network");
  }
  EngineConstants constants;
  std::memset(static_cast<void*>(&constants), 0, sizeof constants);  // padding, too: equal models, equal bytes
  constants.line.net = blob.network;
  constants.line.rules = rules_of(LineSettings(data.spec));
  constants.line.layout = found->layout;
  constants.line.blocks = 1;
  constants.line.heads_at_once = found->heads_at_once;
  if (from_maps) {
    const HeatmapView view = HeatmapView::dense(nullptr, DType::kFloat32, 0, joints, options.height, options.width);
    constants.line.maps = maps_of(view, model.codec(), model.temperature());
  }
  constants.from_maps = from_maps ? 1 : 0;
  constants.state_words = joints;
  if (found->outside) {
    constants.partials_at = kStateAlign;
    constants.state_words = kStateAlign + static_cast<int>(kernels::aligned(found->layout.partial_bytes) / 4);
  }
  layer.threads = kernels::kLineThreads;
  layer.shared_bytes = found->layout.total;
  layer.state_words = constants.state_words;
  layer.std = model.variance();
  layer.weights = std::move(blob.bytes);
  layer.constants.resize(sizeof constants);
  std::memcpy(layer.constants.data(), &constants, sizeof constants);
  return layer;
}

}  // namespace port
