// SPDX-License-Identifier: Apache-2.0
// The specification of a model file. port_deploy/config.py and skeleton.py are the definition; each check here has its
// twin there, and a test feeds both the same damaged files. Test: csrc/tests/test_model.cpp.
#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <initializer_list>
#include <set>

#include "json.h"
#include "model.h"

namespace port {
namespace {

using json::Value;
using Kind = Value::Kind;

[[noreturn]] void fail(const std::string& message) {
  throw Error(ErrorCode::kModelFile, "unusable specification: " + message);
}

void check(bool condition, const std::string& message) {
  if (!condition) fail(message);
}

// A whole number; Python counts true and false among them.
bool is_whole(const Value& value) { return value.is(Kind::kBool) || (value.is(Kind::kNumber) && value.integral); }

int saturate(const Value& value) { return static_cast<int>(std::clamp<std::int64_t>(value.integer, INT_MIN, INT_MAX)); }

float to_float(double value) { return static_cast<float>(std::clamp<double>(value, -FLT_MAX, FLT_MAX)); }

void check_fields(const Value& object, const char* what, std::initializer_list<const char*> known) {
  check(object.is(Kind::kObject), std::string("expected ") + what + " to be an object");
  for (const auto& member : object.members) {
    const bool found = std::any_of(known.begin(), known.end(), [&](const char* name) { return member.first == name; });
    check(found, std::string(what) + " has the unknown field '" + member.first + "': re-export the model");
  }
}

void read_int(const Value& object, const char* key, int low, int high, int& target) {
  const Value* value = object.find(key);
  if (!value) return;
  check(value->is(Kind::kNumber) && value->integral && value->integer >= low && value->integer <= high,
        std::string("expected ") + key + " to be a whole number from " + std::to_string(low) + " to " +
            std::to_string(high));
  target = static_cast<int>(value->integer);
}

void read_count(const Value& object, const char* key, int low, int& target) {
  const Value* value = object.find(key);
  if (!value) return;
  check(is_whole(*value) && value->integer >= low,
        std::string("expected ") + key + " to be a whole number of at least " + std::to_string(low));
  target = saturate(*value);
}

void read_bool(const Value& object, const char* key, bool& target) {
  const Value* value = object.find(key);
  if (!value) return;
  check(value->is(Kind::kBool), std::string("expected ") + key + " to be true or false");
  target = value->boolean;
}

void read_positive(const Value& object, const char* key, float& target) {
  const Value* value = object.find(key);
  if (!value) return;
  check(value->is(Kind::kNumber) && std::isfinite(value->number) && value->number > 0,
        std::string("expected a positive ") + key);
  target = std::max(to_float(value->number), FLT_MIN);
}

// The index of a field's text among `choices`; `target` stays where the field is absent.
template <typename T>
void read_choice(const Value& object, const char* key, std::initializer_list<std::pair<const char*, T>> choices,
                 T& target) {
  const Value* value = object.find(key);
  if (!value) return;
  for (const auto& [name, choice] : choices) {
    if (value->is(Kind::kString) && value->text == name) {
      target = choice;
      return;
    }
  }
  fail(std::string("unknown ") + key + " '" + value->text + "'");
}

void read_config(const Value& object, NetworkConfig& config) {
  check_fields(object, "config",
               {"width", "layers", "heads", "head_dim", "hops", "share_hop_weights", "mlp_ratio", "se_reduction",
                "attention_scale", "input_channels", "residual", "mask_embedding", "masked_coordinates",
                "layer_norm_eps", "variance"});
  read_int(object, "width", 8, 512, config.width);
  read_int(object, "layers", 1, 32, config.layers);
  read_int(object, "heads", 1, 32, config.heads);
  read_int(object, "head_dim", 8, 256, config.head_dim);
  read_int(object, "mlp_ratio", 1, 8, config.mlp_ratio);
  read_int(object, "se_reduction", 1, 64, config.se_reduction);
  check(config.width % 8 == 0, "expected width to be a multiple of 8");
  check(config.head_dim % 8 == 0, "expected head_dim to be a multiple of 8");
  check(config.width % config.se_reduction == 0, "expected se_reduction to divide width");
  if (const Value* hops = object.find("hops")) {
    check(hops->is(Kind::kArray) && !hops->items.empty() && hops->items.size() <= 4,
          "expected hops to be 1 to 4 numbers");
    config.hops.clear();
    for (const Value& k : hops->items) {
      check(is_whole(k) && k.integer >= 0 && k.integer <= 8, "expected hops to be whole numbers from 0 to 8");
      config.hops.push_back(static_cast<int>(k.integer));
    }
    check(std::set<int>(config.hops.begin(), config.hops.end()).size() == config.hops.size(),
          "expected hops to be different");
  }
  read_choice<bool>(object, "attention_scale", {{"head_dim", false}, {"width", true}}, config.attention_scale_width);
  read_choice<bool>(object, "masked_coordinates", {{"keep", false}, {"zero", true}}, config.zero_masked);
  if (const Value* channels = object.find("input_channels")) {
    check(channels->is(Kind::kNumber) && (channels->number == 2 || channels->number == 3),
          "expected input_channels 2 or 3");
    config.input_channels = channels->number == 2 ? 2 : 3;
  }
  read_bool(object, "share_hop_weights", config.share_hop_weights);
  read_bool(object, "residual", config.residual);
  read_bool(object, "mask_embedding", config.mask_embedding);
  read_bool(object, "variance", config.variance);
  if (const Value* eps = object.find("layer_norm_eps")) {
    check(eps->is(Kind::kNumber) && !eps->integral && eps->number > 0 && eps->number < 1e-2,
          "expected layer_norm_eps between 0 and 0.01");
    config.layer_norm_eps = to_float(eps->number);
  }
}

int joint_index(const Value& value, const std::vector<std::string>& names) {
  if (value.is(Kind::kNumber) && value.integral) return saturate(value);
  const auto found = std::find(names.begin(), names.end(), value.text);
  check(value.is(Kind::kString) && found != names.end(), "skeleton: no joint '" + value.text + "'");
  return static_cast<int>(found - names.begin());
}

std::vector<std::array<int, 2>> read_pairs(const Value& object, const char* key,
                                           const std::vector<std::string>& names) {
  std::vector<std::array<int, 2>> pairs;
  const Value* value = object.find(key);
  if (!value) return pairs;
  check(value->is(Kind::kArray), std::string("skeleton: expected ") + key + " to be a list of pairs");
  for (const Value& item : value->items) {
    check(item.is(Kind::kArray) && item.items.size() == 2, std::string("skeleton: expected ") + key + " to be pairs");
    const int a = joint_index(item.items[0], names), b = joint_index(item.items[1], names);
    const int n = static_cast<int>(names.size());
    check(a >= 0 && a < n && b >= 0 && b < n && a != b,
          std::string("skeleton: a pair of ") + key + " is not two different joints");
    pairs.push_back({a, b});
  }
  return pairs;
}

void read_skeleton(const Value& object, ModelSpec& spec) {
  check_fields(object, "skeleton", {"name", "names", "bones", "mirror", "root", "axis"});
  const Value* names = object.find("names");
  check(names && names->is(Kind::kArray), "skeleton: expected names to be a list");
  const std::size_t n = names->items.size();
  check(n >= 2 && n <= kMaxJoints, "skeleton: expected 2 to 32 joints, got " + std::to_string(n));
  for (const Value& name : names->items) {
    check(name.is(Kind::kString) && !name.text.empty(), "skeleton: expected non-empty joint names");
    spec.joint_names.push_back(name.text);
  }
  check(std::set<std::string>(spec.joint_names.begin(), spec.joint_names.end()).size() == n,
        "skeleton: expected different joint names");
  const Value* name = object.find("name");
  check(name && !(name->is(Kind::kString) && name->text.empty()), "skeleton: expected a name");
  spec.skeleton = name->text;

  spec.bones = read_pairs(object, "bones", spec.joint_names);
  check(!spec.bones.empty(), "skeleton: expected at least one bone");
  const auto mirror = read_pairs(object, "mirror", spec.joint_names);
  std::set<int> mirrored;
  for (const auto& pair : mirror) mirrored.insert(pair.begin(), pair.end());
  check(mirrored.size() == 2 * mirror.size(), "skeleton: a joint stands in two mirror pairs");
  if (const Value* root = object.find("root")) spec.root = joint_index(*root, spec.joint_names);
  if (const Value* axis = object.find("axis")) spec.axis = joint_index(*axis, spec.joint_names);
  const auto inside = [n](int joint) { return joint >= 0 && joint < static_cast<int>(n); };
  check(inside(spec.root) && inside(spec.axis) && spec.root != spec.axis,
        "skeleton: expected root and axis to be different joints");
}

}  // namespace

ModelSpec parse_specification(const std::string& text) {
  const Value data = json::parse(text, json::Dialect::kPython);
  const Value* version = data.find("format_version");
  check(version, "no format_version: re-export the model");
  check(is_whole(*version) && version->integer == 1, "expected specification format 1: upgrade port-deploy");
  check_fields(data, "it",
               {"format_version", "name", "skeleton", "config", "codec", "temperature", "frame", "frame_size",
                "threshold", "threshold_source", "min_visible", "max_masked", "refine", "fusion", "confidence_divisor",
                "std_scale", "training", "licence", "metrics"});
  const Value* name = data.find("name");
  const Value* skeleton = data.find("skeleton");
  const Value* config = data.find("config");
  check(name && skeleton && config, "it lacks name, skeleton or config: re-export the model");

  ModelSpec spec;
  spec.name = name->text;
  read_skeleton(*skeleton, spec);
  read_config(*config, spec.config);
  if (const Value* size = data.find("frame_size")) {
    const auto usable = [](const Value& v) {
      return (v.is(Kind::kNumber) || v.is(Kind::kBool)) && std::isfinite(v.number) && v.number > 0;
    };
    check(size->is(Kind::kArray) && size->items.size() == 2 && usable(size->items[0]) && usable(size->items[1]),
          "expected frame_size [w, h] > 0");
    spec.frame_size = {std::max(to_float(size->items[0].number), FLT_MIN),
                       std::max(to_float(size->items[1].number), FLT_MIN)};
  }
  if (const Value* threshold = data.find("threshold")) {
    check(threshold->is(Kind::kNumber) && std::isfinite(threshold->number) && threshold->number >= 0,
          "expected threshold to be a finite number of at least 0");
    spec.threshold = to_float(threshold->number);
  }
  read_choice<Codec>(
      data, "codec",
      {{"softargmax", Codec::kSoftargmax}, {"softargmax-sum", Codec::kSoftargmaxSum}, {"argmax", Codec::kArgmax}},
      spec.codec);
  read_choice<Frame>(data, "frame", {{"visible", Frame::kVisible}, {"paper", Frame::kPaper}}, spec.frame);
  read_choice<bool>(data, "refine", {{"masked", false}, {"all", true}}, spec.refine_all);
  read_positive(data, "temperature", spec.temperature);
  read_positive(data, "confidence_divisor", spec.confidence_divisor);
  read_positive(data, "std_scale", spec.std_scale);
  read_count(data, "min_visible", 2, spec.min_visible);
  read_count(data, "max_masked", 0, spec.max_masked);
  if (const Value* fusion = data.find("fusion")) {
    check((fusion->is(Kind::kNumber) || fusion->is(Kind::kBool)) && fusion->number >= 0 && fusion->number <= 1,
          "expected fusion from 0 to 1");
    spec.fusion = to_float(fusion->number);
  }
  return spec;
}

}  // namespace port
