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
  int width = 64;                    // D
  int layers = 4;                    // L
  int heads = 4;
  int head_dim = 64;
  std::vector<int> hops = {1, 2};    // K
  bool share_hop_weights = false;
  int mlp_ratio = 2;
  int se_reduction = 4;
  bool attention_scale_width = false;  // scores / sqrt(width) instead of sqrt(head_dim)
  int input_channels = 2;
  bool residual = false;
  bool mask_embedding = true;
  bool zero_masked = false;
  float layer_norm_eps = 1e-5f;

  int inner() const { return heads * head_dim; }
  int mlp_width() const { return width * mlp_ratio; }
  int se_width() const { return width / se_reduction; }
};

struct ModelSpec {
  std::string name;
  std::vector<std::string> joint_names;       // N
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

  int joints() const { return static_cast<int>(joint_names.size()); }
};

struct Tensor {
  std::vector<std::size_t> shape;
  std::vector<float> values;  // row-major
};

// Names and shapes as PortConfig.parameter_shapes() in port_deploy/config.py lists them.
using Tensors = std::map<std::string, Tensor>;

// D^(-1/2) (A + I) D^(-1/2) to the power k, row-major [N][N], in double. Eq. (4).
std::vector<double> hop_matrix(const ModelSpec& spec, int k);

}  // namespace port
