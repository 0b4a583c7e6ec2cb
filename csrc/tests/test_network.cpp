// SPDX-License-Identifier: Apache-2.0
// The kernels of every instruction set against PORT in double (network_reference.h): accuracy in fp32 and bf16 over odd
// configurations, bits that do not depend on the rest of the batch, memory, hostile inputs and degenerate weights.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "network.h"
#include "network_gauge.h"
#include "network_reference.h"

namespace {

using port::Isa;
using port::NetworkConfig;
using port::Precision;

// 1e-3 px, the product's budget, in a frame whose unit is 128 px: half of a 256-pixel crop.
constexpr double kLargestError = 1e-3 / 128.0;

int failures = 0;

void check(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

struct Variant {
  Isa isa;
  Precision precision;
  std::string name() const {
    return std::string(port::isa_name(isa)) + (precision == Precision::kBfloat16 ? " bf16" : " fp32");
  }
};

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    if (port::isa_available(isa)) all.push_back({isa, Precision::kFloat32});
  }
  if (port::bf16_available()) all.push_back({Isa::kAvx512, Precision::kBfloat16});
  return all;
}

struct Poses {
  int batch = 0, joints = 0, channels = 0;
  std::vector<float> inputs;
  std::vector<std::uint8_t> mask, needed;
};

Poses make_poses(int batch, const port::ModelSpec& spec, unsigned seed = 7) {
  Poses poses;
  poses.batch = batch, poses.joints = spec.joints(), poses.channels = spec.config.input_channels;
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  const auto count = static_cast<std::size_t>(batch * spec.joints());
  poses.inputs.resize(count * static_cast<std::size_t>(poses.channels));
  for (float& v : poses.inputs) v = normal(generator);
  for (std::size_t i = 0; i < count; ++i) {
    poses.mask.push_back(generator() % 10 < 3);
    poses.needed.push_back(generator() % 10 < 4);
  }
  return poses;
}

// Runs with a workspace full of NaN, of exactly the size asked for (a sanitizer sees one byte too far).
std::vector<float> run(const port::Network& network, const Poses& poses, const std::vector<std::uint8_t>& needed) {
  const std::size_t bytes = (network.workspace_bytes() + 63) / 64 * 64;
  std::unique_ptr<unsigned char[], void (*)(unsigned char*)> workspace(
      static_cast<unsigned char*>(::operator new[](bytes, std::align_val_t{64})),
      [](unsigned char* p) { ::operator delete[](p, std::align_val_t{64}); });
  std::memset(workspace.get(), 0xff, bytes);
  std::vector<float> out(static_cast<std::size_t>(poses.batch * poses.joints) * 2,
                         std::numeric_limits<float>::quiet_NaN());
  network.forward(poses.inputs.data(), poses.mask.data(), needed.data(), poses.batch, out.data(), nullptr,
                  workspace.get());
  return out;
}

std::vector<float> run_all(const port::Network& network, const Poses& poses) {
  return run(network, poses, std::vector<std::uint8_t>(poses.needed.size(), 1));
}

std::vector<double> reference(const port::ModelSpec& spec, const port::Tensors& tensors, const Poses& poses,
                              const port_test::Round& round) {
  const port_test::Reference port{spec, tensors, round};
  std::vector<double> out;
  for (std::ptrdiff_t b = 0; b < poses.batch; ++b) {
    const std::vector<double> one =
        port(poses.inputs.data() + b * poses.joints * poses.channels, poses.mask.data() + b * poses.joints);
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

struct Error {
  double largest = 0.0, root_mean_square = 0.0;
};

template <typename T>
Error difference(const std::vector<T>& got, const std::vector<double>& expected) {
  Error error;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double e = std::fabs(static_cast<double>(got[i]) - expected[i]);
    error.largest = e > error.largest || std::isnan(e) ? e : error.largest;
    error.root_mean_square += e * e / static_cast<double>(got.size());
  }
  error.root_mean_square = std::sqrt(error.root_mean_square);
  return error;
}

struct Case {
  const char* name;
  int joints;
  NetworkConfig config;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name, int joints, int layers) -> NetworkConfig& {
    all.push_back({name, joints, {}});
    all.back().config.layers = layers;
    return all.back().config;
  };
  add("paper", 21, 4);
  {
    NetworkConfig& c = add("soft", 16, 4);
    c.input_channels = 3, c.residual = true, c.mask_embedding = false;
  }
  add("one joint more than a vector", 17, 2);
  add("two joints", 2, 2);
  add("the most joints", 32, 2);
  add("narrow heads: W_O stays apart", 21, 2).head_dim = 16;
  add("shared hop weights: Q is Y", 21, 2).share_hop_weights = true;
  add("four hops, the zeroth among them", 9, 2).hops = {0, 1, 2, 5};
  {
    NetworkConfig& c = add("heads wider than Y", 13, 2);
    c.hops = {2}, c.head_dim = 128, c.attention_scale_width = true;
  }
  {
    NetworkConfig& c = add("no width a multiple of the vector", 21, 3);
    c.width = 72, c.heads = 3, c.head_dim = 40, c.mlp_ratio = 3, c.se_reduction = 8;
  }
  {
    NetworkConfig& c = add("the smallest: no low-rank first layer", 5, 1);
    c.width = 8, c.heads = 1, c.head_dim = 8, c.mlp_ratio = 1, c.se_reduction = 8, c.hops = {0, 1, 3};
  }
  return all;
}

void test_accuracy() {
  for (const Case& c : cases()) {
    const port::ModelSpec spec = port_test::make_spec(c.joints, c.config);
    const port::Tensors tensors = port_test::make_tensors(spec);
    const Poses poses = make_poses(4, spec);
    const std::vector<double> exact = reference(spec, tensors, poses, port_test::keep);
    const double plain_bf16 = difference(reference(spec, tensors, poses, port_test::to_bf16), exact).root_mean_square;
    for (const Variant& v : variants()) {
      const auto network = port::make_network(spec, tensors, v.isa, v.precision);
      const Error error = difference(run_all(*network, poses), exact);
      const std::string where = v.name() + ", " + c.name;
      std::printf("%-60s max %.1e rms %.1e\n", where.c_str(), error.largest, error.root_mean_square);
      if (v.precision == Precision::kFloat32) {
        check(error.largest <= kLargestError, where + ": too far from the double reference");
      } else {
        check(error.root_mean_square <= 2.0 * plain_bf16, where + ": over twice the error of plain bf16");
      }
    }
  }
}

void test_bits() {
  for (const Case& c : cases()) {
    const port::ModelSpec spec = port_test::make_spec(c.joints, c.config);
    const port::Tensors tensors = port_test::make_tensors(spec, 3);
    const Poses poses = make_poses(5, spec);
    for (const Variant& v : variants()) {
      const auto network = port::make_network(spec, tensors, v.isa, v.precision);
      const std::vector<float> together = run_all(*network, poses);
      for (std::ptrdiff_t b = 0; b < poses.batch; ++b) {
        Poses alone = make_poses(1, spec);
        const std::ptrdiff_t n = poses.joints;
        std::copy_n(poses.inputs.begin() + b * n * poses.channels, n * poses.channels, alone.inputs.begin());
        std::copy_n(poses.mask.begin() + b * n, n, alone.mask.begin());
        std::copy_n(poses.needed.begin() + b * n, n, alone.needed.begin());
        const std::vector<float> one = run(*network, alone, alone.needed);
        bool same = true;
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          if (!alone.needed.data()[i]) continue;
          same = same && std::memcmp(one.data() + i * 2, together.data() + (b * n + i) * 2, 8) == 0;
        }
        check(same, v.name() + ", " + c.name + ": a pose's bits depend on its batch or on the rows needed");
      }
    }
  }
}

// One pose with joints as far out as the line lets them be: its neighbours do not notice, and an empty batch is
// nothing.
void test_hostile_inputs() {
  const port::ModelSpec spec = port_test::make_spec(21);
  const port::Tensors tensors = port_test::make_tensors(spec);
  const Poses poses = make_poses(3, spec);
  Poses hostile = poses;
  for (std::size_t i = 42; i < 84; ++i) hostile.inputs[i] *= i % 3 ? 2e9f : -2e-30f;
  for (const Variant& v : variants()) {
    const auto network = port::make_network(spec, tensors, v.isa, v.precision);
    const std::vector<float> before = run_all(*network, poses), after = run_all(*network, hostile);
    check(std::memcmp(before.data(), after.data(), 42 * 4) == 0, v.name() + ": a far joint changed the pose before it");
    check(std::memcmp(before.data() + 84, after.data() + 84, 42 * 4) == 0, v.name() + ": ... the pose after it");
    for (std::size_t i = 42; i < 84; ++i) check(std::isfinite(after[i]), v.name() + ": a far joint gave NaN");
    check(run_all(*network, make_poses(0, spec)).empty(), v.name() + ": an empty batch");
  }
}

// Query projections without full rank have no gauge, or a worthless one: the answer must not suffer.
void test_degenerate_weights() {
  const port::ModelSpec spec = port_test::make_spec(21);
  for (int kind = 0; kind < 3; ++kind) {
    port::Tensors tensors = port_test::make_tensors(spec);
    for (int l = 0; l < spec.config.layers; ++l) {
      std::vector<float>& q = tensors["layers." + std::to_string(l) + ".q.weight"].values;
      for (std::size_t i = 0; i < q.size(); ++i) {
        if (kind == 0) q[i] = 0.0f;                                                  // no queries at all
        if (kind == 1 && i % 64 >= 32) q[i] = q[i - 32];                             // rank 32
        if (kind == 2) q[i] *= std::pow(10.0f, -static_cast<float>(i % 64) / 8.0f);  // condition 1e8
      }
    }
    const Poses poses = make_poses(4, spec);
    const std::vector<double> exact = reference(spec, tensors, poses, port_test::keep);
    for (const Variant& v : variants()) {
      const Error error = difference(run_all(*port::make_network(spec, tensors, v.isa, v.precision), poses), exact);
      check(error.largest <= (v.precision == Precision::kFloat32 ? kLargestError : 0.1),
            v.name() + ": degenerate queries of kind " + std::to_string(kind));
    }
  }
}

void test_gauge() {
  std::mt19937 generator(5);
  std::normal_distribution<double> normal;
  port::Dense w(130, 64), gauge;
  for (double& v : w.values) v = normal(generator);
  std::vector<int> select, rest;
  check(port::choose_gauge(w, 128, &select, &rest, &gauge), "a full-rank matrix has a gauge");
  check(select.size() == 64 && rest.size() == 66 && gauge.rows == 66, "the gauge's shape");
  const port::Dense again = port::multiply(gauge, port::rows_of(w, select)), expected = port::rows_of(w, rest);
  double error = 0.0, largest = 0.0;
  for (std::size_t i = 0; i < expected.values.size(); ++i) {
    error = std::fmax(error, std::fabs(again.values[i] - expected.values[i]));
  }
  for (std::size_t i = 0; i < 64 * 64; ++i) largest = std::fmax(largest, std::fabs(gauge.values[i]));
  check(error < 1e-10, "the gauge gives the other rows back");
  check(largest < 1.1, "the gauge's entries are at most about one");
  for (const int s : select) check(s < 128, "only candidates are selected");
  check(!port::choose_gauge(port::Dense(130, 64), 128, &select, &rest, &gauge), "zero has no gauge");
}

void test_refusals() {
  const port::ModelSpec spec = port_test::make_spec(4);
  const port::Tensors tensors = port_test::make_tensors(spec);
  try {
    port::make_network(spec, tensors, Isa::kGeneric, Precision::kBfloat16);
    check(false, "bf16 without its instructions is refused");
  } catch (const port::Error& error) {
    check(error.code() == port::ErrorCode::kUnavailable, "bf16 without its instructions is unavailable");
  }
}

}  // namespace

int main() {
  test_gauge();
  test_accuracy();
  test_bits();
  test_hostile_inputs();
  test_degenerate_weights();
  test_refusals();
  std::printf("%d checks failed\n", failures);
  return failures ? 1 : 0;
}
