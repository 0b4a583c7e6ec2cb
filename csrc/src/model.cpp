// SPDX-License-Identifier: Apache-2.0
// port::Model, and what a specification implies: tensor shapes and graph powers. Test: csrc/tests/test_model.cpp.
#include "model.h"

#include <cmath>
#include <cstdio>
#include <utility>

#include "safetensors.h"

namespace port {
namespace {

std::string shape_text(const std::vector<std::size_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::vector<unsigned char> read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) throw Error(ErrorCode::kInput, "cannot open model " + path + ": give the path of a .safetensors file");
  std::vector<unsigned char> bytes;
  unsigned char block[1 << 16];
  // Read to the end instead of asking for the size: pipes have none, and a size may change.
  while (const std::size_t count = std::fread(block, 1, sizeof block, file.get())) {
    bytes.insert(bytes.end(), block, block + count);
    if (bytes.size() > kMaxFileBytes) {
      throw Error(ErrorCode::kModelFile,
                  path + " is larger than " + std::to_string(kMaxFileBytes >> 20) + " MiB: not a PORT model");
    }
  }
  if (std::ferror(file.get())) throw Error(ErrorCode::kInput, "cannot read model " + path + ": is it a file?");
  return bytes;
}

}  // namespace

std::map<std::string, std::vector<std::size_t>> parameter_shapes(const NetworkConfig& config) {
  const auto size = [](int value) { return static_cast<std::size_t>(value); };
  const std::size_t d = size(config.width), inner = size(config.inner()), hidden = size(config.mlp_width());
  const std::size_t se = size(config.se_width()), k = config.share_hop_weights ? 1 : config.hops.size();
  std::map<std::string, std::vector<std::size_t>> shapes;
  shapes["embed.weight"] = {k, size(config.input_channels), d};
  if (config.mask_embedding) shapes["mask_embedding"] = {d};
  for (int i = 0; i < config.layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    for (const char* name : {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "out.bias", "fc2.bias"}) {
      shapes[p + name] = {d};
    }
    for (const char* name : {"q.weight", "k.weight", "v.weight"}) shapes[p + name] = {k, d, inner};
    shapes[p + "out.weight"] = {d, inner};
    shapes[p + "fc1.weight"] = {hidden, d};
    shapes[p + "fc1.bias"] = {hidden};
    shapes[p + "fc2.weight"] = {d, hidden};
  }
  shapes["head.se1.weight"] = {se, d};
  shapes["head.se1.bias"] = {se};
  shapes["head.se2.weight"] = {d, se};
  shapes["head.se2.bias"] = {d};
  shapes["head.out.weight"] = {size(config.outputs()), d};
  shapes["head.out.bias"] = {size(config.outputs())};
  return shapes;
}

ModelData parse_model(const void* data, std::size_t size) {
  Safetensors file = parse_safetensors(data, size);
  const auto text = file.metadata.find("port_deploy");
  if (text == file.metadata.end()) {
    throw Error(ErrorCode::kModelFile, "no port_deploy specification in its metadata: not written by port-train");
  }
  ModelData model{parse_specification(text->second), std::move(file.tensors)};
  const auto expected = parameter_shapes(model.spec.config);
  for (const auto& [name, shape] : expected) {
    const auto found = model.tensors.find(name);
    if (found == model.tensors.end()) {
      throw Error(ErrorCode::kModelFile, "tensor " + name + " is missing for its config");
    }
    if (found->second.shape != shape) {
      throw Error(ErrorCode::kModelFile, "expected " + name + " float32 or float16 " + shape_text(shape) + ", got " +
                                             shape_text(found->second.shape));
    }
  }
  for (const auto& tensor : model.tensors) {
    if (!expected.count(tensor.first)) {
      throw Error(ErrorCode::kModelFile, "tensor " + tensor.first + " is unknown for its config");
    }
  }
  return model;
}

std::vector<double> hop_matrix(const ModelSpec& spec, int k) {
  const std::size_t n = spec.joint_names.size();
  std::vector<double> adjacency(n * n, 0.0), degree(n, 0.0), power(n * n, 0.0);
  for (std::size_t i = 0; i < n; ++i) adjacency[i * n + i] = power[i * n + i] = 1.0;
  for (const auto& bone : spec.bones) {
    const auto a = static_cast<std::size_t>(bone[0]), b = static_cast<std::size_t>(bone[1]);
    adjacency[a * n + b] = adjacency[b * n + a] = 1.0;
  }
  for (std::size_t i = 0; i < n * n; ++i) degree[i / n] += adjacency[i];
  for (std::size_t i = 0; i < n * n; ++i) adjacency[i] /= std::sqrt(degree[i / n]) * std::sqrt(degree[i % n]);
  for (int step = 0; step < k; ++step) {
    std::vector<double> next(n * n, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t m = 0; m < n; ++m) {
        for (std::size_t j = 0; j < n; ++j) next[i * n + j] += power[i * n + m] * adjacency[m * n + j];
      }
    }
    power = std::move(next);
  }
  return power;
}

Model::Model(std::unique_ptr<const ModelData> data) : data_(std::move(data)) {}
Model::~Model() = default;

std::shared_ptr<const Model> Model::load(const std::string& path) {
  const std::vector<unsigned char> bytes = read_file(path);
  return from_buffer(bytes.data(), bytes.size(), path);
}

std::shared_ptr<const Model> Model::from_buffer(const void* data, std::size_t size, const std::string& source) {
  if (data == nullptr && size > 0) throw Error(ErrorCode::kInput, "expected the bytes of a model, got a null pointer");
  try {
    return std::make_shared<const Model>(std::make_unique<const ModelData>(parse_model(data, size)));
  } catch (const Error& error) {
    throw Error(error.code(), source + ": " + error.what());
  }
}

const std::string& Model::name() const { return data_->spec.name; }
const std::string& Model::skeleton() const { return data_->spec.skeleton; }
int Model::joints() const { return data_->spec.joints(); }
const std::vector<std::string>& Model::joint_names() const { return data_->spec.joint_names; }
float Model::threshold() const { return data_->spec.threshold; }
Codec Model::codec() const { return data_->spec.codec; }
float Model::temperature() const { return data_->spec.temperature; }
Frame Model::frame() const { return data_->spec.frame; }
Refine Model::refine() const { return data_->spec.refine_all ? Refine::kAll : Refine::kMasked; }
int Model::min_visible() const { return data_->spec.min_visible; }
int Model::max_masked() const { return data_->spec.max_masked; }
float Model::fusion() const { return data_->spec.fusion; }
float Model::confidence_divisor() const { return data_->spec.confidence_divisor; }
bool Model::variance() const { return data_->spec.config.variance; }
float Model::std_scale() const { return data_->spec.std_scale; }

std::size_t Model::parameter_count() const {
  std::size_t count = 0;
  for (const auto& tensor : data_->tensors) count += tensor.second.values.size();
  return count;
}

}  // namespace port
