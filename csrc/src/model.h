// SPDX-License-Identifier: Apache-2.0
// A model in memory: the specification and the tensors of a .safetensors file, checked.
// The same fields, names and rules as port_deploy/config.py and weights.py. Test: csrc/tests/test_model.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "../include/port/port.hpp"

namespace port {

struct NetworkConfig {
  int width = 64;  // D
  int layers = 4;  // L
  int heads = 4;
  int head_dim = 64;
  std::vector<int> hops = {1, 2};  // K
  bool share_hop_weights = false;
  int mlp_ratio = 2;
  int se_reduction = 4;
  bool attention_scale_width = false;  // scores / sqrt(width) instead of sqrt(head_dim)
  int input_channels = 2;
  bool residual = false;
  bool mask_embedding = true;
  bool zero_masked = false;
  float layer_norm_eps = 1e-5f;
  bool variance = false;  // the head's third row is log sigma

  int outputs() const { return variance ? 3 : 2; }  // rows of the head
  int inner() const { return heads * head_dim; }
  int mlp_width() const { return width * mlp_ratio; }
  int se_width() const { return width / se_reduction; }
};

struct ModelSpec {
  std::string name;
  std::string skeleton;
  std::vector<std::string> joint_names;  // N
  std::vector<std::array<int, 2>> bones;
  int root = 0;
  int axis = 1;
  NetworkConfig config;
  Codec codec = Codec::kSoftargmax;
  float temperature = 40.0f;
  Frame frame = Frame::kVisible;
  std::array<float, 2> frame_size = {256.0f, 256.0f};
  float threshold = 0.3f;
  int min_visible = 4;
  int max_masked = 64;
  bool refine_all = false;
  float fusion = 1.0f;
  float confidence_divisor = 1.0f;
  float std_scale = 1.0f;

  int joints() const { return static_cast<int>(joint_names.size()); }
};

struct Tensor {
  std::vector<std::size_t> shape;
  std::vector<float> values;  // row-major
};

// Names and shapes as PortConfig.parameter_shapes() in port_deploy/config.py lists them.
using Tensors = std::map<std::string, Tensor>;

struct ModelData {
  ModelSpec spec;
  Tensors tensors;
};

// Limits of port_deploy/config.py and skeleton.py.
constexpr int kMaxJoints = 32;
constexpr float kMaxCoordinate = 1e6f;  // pixels; beyond it a joint counts as missing
constexpr double kMinScale = 1e-3;      // pixels; below this spread of the visible joints a pose is left alone
constexpr double kLogStdLow = -7.0, kLogStdHigh = 0.0;  // LOG_STD_RANGE
constexpr std::size_t kMaxFileBytes = std::size_t{256} << 20;

// The specification in a model file's metadata. Throws Error(kModelFile) wherever ModelSpec.from_json does.
ModelSpec parse_specification(const std::string& text);

// The list that a file's tensors must equal: PortConfig.parameter_shapes().
std::map<std::string, std::vector<std::size_t>> parameter_shapes(const NetworkConfig& config);

// The bytes of a .safetensors file, everything checked. Throws Error(kModelFile).
ModelData parse_model(const void* data, std::size_t size);

// D^(-1/2) (A + I) D^(-1/2) to the power k, row-major [N][N], in double. Eq. (4).
std::vector<double> hop_matrix(const ModelSpec& spec, int k);

}  // namespace port
