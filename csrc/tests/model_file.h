// SPDX-License-Identifier: Apache-2.0
// Model files made in memory, with random weights, and ways to damage them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "model.h"

namespace port_test {

constexpr const char* kSkeleton =
    R"({"name": "chain", "names": ["a", "b", "c", "d", "e", "f", "g"],)"
    R"( "bones": [[0, 1], [1, 2], [2, 3], ["d", "e"], [1, 5], [5, 6]], "mirror": [[4, 6]], "root": 0, "axis": 1})";

constexpr const char* kConfig =
    R"({"width": 16, "layers": 2, "heads": 2, "head_dim": 8, "hops": [0, 2], "se_reduction": 4, "input_channels": 3,)"
    R"( "residual": true, "mask_embedding": false})";

// A specification with `more` fields, e.g. R"("refine": "all")".
inline std::string specification(const std::string& more = "", const std::string& config = kConfig,
                                 const std::string& skeleton = kSkeleton) {
  return R"({"format_version": 1, "name": "random", "skeleton": )" + skeleton + R"(, "config": )" + config +
         (more.empty() ? "" : ", " + more) + "}";
}

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

inline std::string file_of(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  const std::uint64_t size = header.size();
  std::memcpy(&bytes[0], &size, 8);
  return bytes + header + data;
}

struct Part {
  std::string dtype, shape;
  std::size_t begin, end;
};

struct ModelFile {
  std::string spec;
  std::map<std::string, Part> parts;
  std::string data;

  std::string header() const {
    std::string text = R"({"__metadata__": {"port_deploy": )" + quoted(spec) + "}";
    for (const auto& [name, part] : parts) {
      text += ", " + quoted(name) + R"(: {"dtype": ")" + part.dtype + R"(", "shape": )" + part.shape +
              R"(, "data_offsets": [)" + std::to_string(part.begin) + ", " + std::to_string(part.end) + "]}";
    }
    return text + "}";
  }
  std::string bytes() const { return file_of(header(), data); }
};

// Random weights for the shapes of `spec`, of the order that keeps the network's answers near 1.
inline ModelFile model_file(const std::string& spec = specification(), unsigned seed = 1) {
  ModelFile file{spec, {}, {}};
  std::mt19937 random(seed);
  for (const auto& [name, shape] : port::parameter_shapes(port::parse_specification(spec).config)) {
    std::size_t count = 1;
    std::string text;
    for (const std::size_t dimension : shape) {
      count *= dimension;
      text += (text.empty() ? "[" : ", ") + std::to_string(dimension);
    }
    const double fan_in = shape.size() == 3 ? static_cast<double>(shape[1]) : static_cast<double>(shape.back());
    const bool norm = name.find("norm") != std::string::npos && name.find("weight") != std::string::npos;
    std::normal_distribution<float> draw(norm ? 1.0f : 0.0f,
                                         shape.size() == 1 ? 0.1f : 0.7f / static_cast<float>(std::sqrt(fan_in)));
    const std::size_t begin = file.data.size();
    for (std::size_t i = 0; i < count; ++i) {
      const float value = draw(random);
      file.data.append(reinterpret_cast<const char*>(&value), 4);
    }
    file.parts[name] = {"F32", text + "]", begin, file.data.size()};
  }
  return file;
}

inline std::shared_ptr<const port::Model> load(const std::string& bytes) {
  return port::Model::from_buffer(bytes.data(), bytes.size(), "test");
}

inline std::shared_ptr<const port::Model> random_model(const std::string& more = "",
                                                       const std::string& config = kConfig) {
  return load(model_file(specification(more, config)).bytes());
}

}  // namespace port_test
