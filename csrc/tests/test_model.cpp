// SPDX-License-Identifier: Apache-2.0
// The model reader: a good file, every kind of bad one, and random damage that must never do more than raise an error.
#include <cmath>
#include <cstdio>
#include <string>

#include "model.h"
#include "model_file.h"
#include "testing.h"

using namespace port_test;
using port::ErrorCode;
constexpr auto kBroken = ErrorCode::kModelFile;

namespace {

// A model file whose specification has `more`; the weights are those of the plain one.
std::string with_spec(const std::string& spec) {
  ModelFile file = model_file();
  file.spec = spec;
  return file.bytes();
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  if (at == std::string::npos) throw std::runtime_error("the test has no '" + from + "' to replace");
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST(good_file) {
  const auto model =
      random_model(R"("refine": "all", "codec": "argmax", "temperature": 12.5, "frame": "paper",)"
                   R"( "frame_size": [192, 320.0], "threshold": 0.4, "min_visible": 3, "max_masked": 5,)"
                   R"( "fusion": 0.75, "confidence_divisor": 2, "training": {"x": NaN}, "licence": null)");
  CHECK(model->name() == "random" && model->skeleton() == "chain" && model->joints() == 7);
  CHECK(model->joint_names().back() == "g");
  CHECK(model->refine() == port::Refine::kAll && model->codec() == port::Codec::kArgmax);
  CHECK(model->temperature() == 12.5f && model->frame() == port::Frame::kPaper && model->threshold() == 0.4f);
  CHECK(model->min_visible() == 3 && model->max_masked() == 5 && model->fusion() == 0.75f);
  CHECK(model->confidence_divisor() == 2.0f && model->data().spec.frame_size[1] == 320.0f);
  CHECK(model->data().spec.bones[3] == (std::array<int, 2>{3, 4}));
  CHECK(model->parameter_count() == model_file().data.size() / 4);
}

TEST(defaults_are_those_of_config_py) {
  const auto model = load(model_file(specification("", "{}")).bytes());
  CHECK(model->parameter_count() > 500000 && model->parameter_count() < 560000);
  CHECK(model->codec() == port::Codec::kSoftargmax && model->temperature() == 40.0f);
  CHECK(model->min_visible() == 4 && model->max_masked() == 64 && model->threshold() == 0.3f);
  CHECK(!model->variance() && model->std_scale() == 1.0f);
}

TEST(float16_weights_are_widened) {
  ModelFile file = model_file();
  Part& bias = file.parts.at("head.out.bias");
  const unsigned char half[] = {0x00, 0x3C, 0x01, 0x80};  // 1, -2^-24
  std::string data;
  std::size_t moved = 0;
  for (auto& [name, part] : file.parts) {
    const std::string bytes = name == "head.out.bias" ? std::string(reinterpret_cast<const char*>(half), 4)
                                                      : file.data.substr(part.begin, part.end - part.begin);
    part.begin = moved;
    data += bytes;
    moved = part.end = data.size();
  }
  bias.dtype = "F16";
  file.data = data;
  const auto model = load(file.bytes());
  const auto& values = model->data().tensors.at("head.out.bias").values;
  CHECK(values[0] == 1.0f && values[1] == -std::ldexp(1.0f, -24));
}

TEST(hop_matrices) {
  const port::ModelSpec spec = port::parse_specification(specification());
  const auto once = port::hop_matrix(spec, 1), twice = port::hop_matrix(spec, 2), none = port::hop_matrix(spec, 0);
  const std::size_t n = 7;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      double product = 0.0;
      for (std::size_t m = 0; m < n; ++m) product += once[i * n + m] * once[m * n + j];
      CHECK(std::fabs(product - twice[i * n + j]) < 1e-15);
      CHECK(none[i * n + j] == (i == j ? 1.0 : 0.0));
      CHECK(std::fabs(once[i * n + j] - once[j * n + i]) < 1e-15);
    }
  }
  CHECK(std::fabs(once[0 * n + 1] - 1.0 / std::sqrt(2.0 * 4.0)) < 1e-15);  // degrees with the loop: 2 and 4
}

TEST(files_that_are_no_model) {
  CHECK_ERROR(ErrorCode::kInput, "cannot open", port::Model::load("/nonexistent/model.safetensors"));
  CHECK_ERROR(ErrorCode::kInput, "null pointer", port::Model::from_buffer(nullptr, 8));
  CHECK_ERROR(kBroken, "fewer than 8", load(""));
  CHECK_ERROR(kBroken, "fewer than 8", load("1234567"));
  CHECK_ERROR(kBroken, "does not fit", load(std::string(8, '\xff')));
  CHECK_ERROR(kBroken, "does not fit", load(std::string(8, '\0') + "{}"));
  CHECK_ERROR(kBroken, "JSON", load(file_of("not json at all", "")));
  CHECK_ERROR(kBroken, "object", load(file_of("[]", "")));
  CHECK_ERROR(kBroken, "no port_deploy specification", load(file_of("{}", "")));
  CHECK_ERROR(kBroken, "strings", load(file_of(R"({"__metadata__": {"port_deploy": 1}})", "")));
  CHECK_ERROR(kBroken, "deeply", load(file_of(std::string(200000, '['), "")));
  std::string huge(8, '\0');
  huge[4] = 1;  // a header of 4 GiB
  CHECK_ERROR(kBroken, "does not fit", load(huge + std::string(100, ' ')));
}

TEST(every_truncation_is_an_error) {
  const std::string bytes = model_file().bytes();
  for (std::size_t size = 0; size < bytes.size(); size += 1 + size / 16) {
    const std::string part = bytes.substr(0, size);
    CHECK_ERROR(kBroken, "test: ", load(part));
  }
  CHECK_ERROR(kBroken, "cover", load(bytes + "x"));
}

TEST(hostile_offsets_and_shapes) {
  const ModelFile good = model_file();
  const auto damaged = [&good](const char* name, const std::string& dtype, const std::string& shape, std::size_t begin,
                               std::size_t end) {
    ModelFile file = good;
    file.parts[name] = {dtype, shape, begin, end};
    return file.bytes();
  };
  const Part bias = good.parts.at("head.out.bias");
  const std::size_t b = bias.begin, e = bias.end;
  CHECK_ERROR(kBroken, "outside", load(damaged("head.out.bias", "F32", "[2]", e, b)));
  CHECK_ERROR(kBroken, "outside", load(damaged("head.out.bias", "F32", "[2]", b, std::size_t{1} << 60)));
  CHECK_ERROR(kBroken, "do not fit", load(damaged("head.out.bias", "F32", "[2]", b, e - 4)));
  CHECK_ERROR(kBroken, "overlap", load(damaged("head.out.bias", "F32", "[2]", 0, 8)));
  CHECK_ERROR(kBroken, "overlap", load(damaged("head.out.bias", "F32", "[1]", b, b + 4)));
  CHECK_ERROR(kBroken, "larger", load(damaged("head.out.bias", "F32", "[4294967296, 4294967296, 2]", b, e)));
  CHECK_ERROR(kBroken, "whole numbers", load(damaged("head.out.bias", "F32", "[-2]", b, e)));
  CHECK_ERROR(kBroken, "whole numbers", load(damaged("head.out.bias", "F32", "[2.0]", b, e)));
  CHECK_ERROR(kBroken, "shape", load(damaged("head.out.bias", "F32", "7", b, e)));
  CHECK_ERROR(kBroken, "expected head.out.bias", load(damaged("head.out.bias", "F32", "[2, 1]", b, e)));
  CHECK_ERROR(kBroken, "dtype", load(damaged("head.out.bias", "F64", "[1]", b, e)));
  CHECK_ERROR(kBroken, "dtype", load(damaged("head.out.bias", "BF16", "[4]", b, e)));
  CHECK_ERROR(kBroken, "unknown for", load([&] {
                ModelFile file = good;
                file.parts["extra"] = {"F32", "[1]", good.data.size(), good.data.size() + 4};
                file.data += std::string(4, '\0');
                return file.bytes();
              }()));
  CHECK_ERROR(kBroken, "is missing", load([&] {
                ModelFile file = good;
                const Part part = file.parts.at("head.se2.bias");
                file.parts.erase("head.se2.bias");
                file.parts["head.se3.bias"] = part;
                return file.bytes();
              }()));
  for (const unsigned bits : {0x7F800000u, 0xFF800000u, 0x7FC00000u}) {
    ModelFile file = good;
    std::memcpy(&file.data[b], &bits, 4);
    CHECK_ERROR(kBroken, "NaN or infinity", load(file.bytes()));
  }
}

TEST(specification_fields) {
  const char* bad_fields[] = {R"("codec": "best")",    R"("codec": null)",        R"("frame": 3)",
                              R"("refine": "some")",   R"("temperature": 0)",     R"("temperature": true)",
                              R"("temperature": NaN)", R"("threshold": -0.1)",    R"("threshold": Infinity)",
                              R"("threshold": "0.3")", R"("min_visible": 1)",     R"("min_visible": 3.0)",
                              R"("max_masked": -1)",   R"("max_masked": null)",   R"("fusion": 1.01)",
                              R"("fusion": -1)",       R"("fusion": NaN)",        R"("confidence_divisor": 0)",
                              R"("frame_size": [1])",  R"("frame_size": [1, 0])", R"("frame_size": 256)",
                              R"("colour": 1)",        R"("std_scale": 0)",       R"("std_scale": "1")"};
  for (const char* field : bad_fields) CHECK_ERROR(kBroken, "specification", load(with_spec(specification(field))));
  const char* bad_configs[] = {R"({"width": 12})",
                               R"({"width": 16.0})",
                               R"({"width": true})",
                               R"({"width": 1024})",
                               R"({"layers": 0})",
                               R"({"layers": 33})",
                               R"({"heads": 0})",
                               R"({"head_dim": 12})",
                               R"({"hops": []})",
                               R"({"hops": [1, 1]})",
                               R"({"hops": [1, true]})",
                               R"({"hops": [9]})",
                               R"({"hops": [-1]})",
                               R"({"hops": [1.0]})",
                               R"({"hops": "12"})",
                               R"({"hops": [0,1,2,3,4]})",
                               R"({"mlp_ratio": 9})",
                               R"({"se_reduction": 3})",
                               R"({"input_channels": 4})",
                               R"({"residual": 1})",
                               R"({"mask_embedding": null})",
                               R"({"attention_scale": "d"})",
                               R"({"masked_coordinates": "drop"})",
                               R"({"layer_norm_eps": 0.0})",
                               R"({"layer_norm_eps": 1})",
                               R"({"layer_norm_eps": 0.01})",
                               R"({"variance": 1})",
                               R"({"depth": 4})",
                               R"([])"};
  for (const char* config : bad_configs)
    CHECK_ERROR(kBroken, "specification", load(with_spec(specification("", config))));
  const std::pair<const char*, const char*> bad_skeletons[] = {{"[0, 1], [1, 2]", "[0, 7], [1, 2]"},
                                                               {"[0, 1], [1, 2]", "[0, 0], [1, 2]"},
                                                               {"[0, 1], [1, 2]", "[0, -1], [1, 2]"},
                                                               {"[0, 1], [1, 2]", "[0], [1, 2]"},
                                                               {"\"e\"]", "\"z\"]"},
                                                               {"\"root\": 0", "\"root\": 7"},
                                                               {"\"axis\": 1", "\"axis\": 0"},
                                                               {"\"root\": 0", "\"root\": 0.0"},
                                                               {"\"b\", \"c\"", "\"b\", \"b\""},
                                                               {"\"b\", \"c\"", "\"b\", \"\""},
                                                               {"\"b\", \"c\"", "\"b\", 3"},
                                                               {"[[4, 6]]", "[[4, 6], [6, 5]]"},
                                                               {"[[4, 6]]", "4"},
                                                               {"\"chain\"", "\"\""},
                                                               {"\"mirror\"", "\"miror\""}};
  for (const auto& [from, to] : bad_skeletons) {
    CHECK_ERROR(kBroken, "specification", load(with_spec(specification("", kConfig, replaced(kSkeleton, from, to)))));
  }
  CHECK_ERROR(kBroken, "upgrade",
              load(with_spec(replaced(specification(), "\"format_version\": 1", "\"format_version\": 2"))));
  CHECK_ERROR(kBroken, "format_version", load(with_spec("{}")));
  CHECK_ERROR(kBroken, "lacks", load(with_spec(R"({"format_version": 1, "name": "x"})")));
  CHECK_ERROR(kBroken, "JSON", load(with_spec("{")));
}

TEST(random_damage_never_does_harm) {
  const std::string good = model_file().bytes();
  const std::size_t header = 8 + model_file().header().size();
  std::mt19937 random(3);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = good;
    const int hits = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < hits; ++i) bytes[random() % header] = static_cast<char>(random());
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    try {
      load(bytes);
    } catch (const port::Error& error) {
      CHECK(error.code() == kBroken);
      ++refused;
    }
  }
  CHECK(refused > 2000);
}

int main() { return run_tests(); }
