// SPDX-License-Identifier: Apache-2.0
// Chooses the kernels for an instruction set and holds the packed weights. network.h is the interface.
#include "network.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "kernels/plan.h"
#include "network_fold.h"
#include "network_pack.h"
#include "port/port.hpp"

namespace port {

namespace {

class FoldedPort : public Network {
 public:
  FoldedPort(PackedNetwork packed, ForwardFn run) : packed_(std::move(packed)), run_(run) {}

  std::size_t workspace_bytes() const override { return packed_.plan.workspace_bytes; }
  std::size_t weight_bytes() const override { return packed_.plan.arena_bytes; }

  void forward(const float* inputs, const std::uint8_t* mask, const std::uint8_t* needed, std::int64_t batch,
               float* outputs, float* log_std, void* workspace) const override {
    run_(packed_.plan, inputs, mask, needed, batch, outputs, log_std, workspace);
  }

 private:
  PackedNetwork packed_;
  ForwardFn run_;
};

ForwardFn forward_of(Isa isa) {
  switch (isa) {
    case Isa::kGeneric:
      return generic_forward();
    case Isa::kAvx2:
      return avx2_forward();
    case Isa::kAvx512:
      return avx512_forward();
  }
  return nullptr;
}

}  // namespace

bool isa_available(Isa isa) {
  if (!forward_of(isa)) return false;
#if defined(__x86_64__)
  // The builtins also ask whether the operating system saves the registers.
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  }
#endif
  return isa == Isa::kGeneric;
}

bool bf16_available() {
#if defined(__x86_64__)
  return avx512_bf16_forward() && isa_available(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kGeneric:
      return "generic";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

std::unique_ptr<Network> make_network(const ModelSpec& spec, const Tensors& tensors, Isa isa, Precision precision) {
  const bool bf16 = precision == Precision::kBfloat16;
  if (precision == Precision::kFloat16) {
    throw Error(ErrorCode::kUnavailable, "fp16 needs a GPU, and this runs on the processor: use fp32 or bf16");
  }
  if (!isa_available(isa)) {
    throw Error(ErrorCode::kUnavailable, std::string("expected an instruction set of this processor and build, got ") +
                                             isa_name(isa) + ": unset PORT_FORCE_ISA or name another");
  }
  if (bf16 && (isa != Isa::kAvx512 || !bf16_available())) {
    throw Error(ErrorCode::kUnavailable,
                std::string("bf16 needs AVX512_BF16, and this would run on ") + isa_name(isa) + ": use fp32");
  }
  const int vector_floats = isa == Isa::kAvx512 ? 16 : isa == Isa::kAvx2 ? 8 : 4;
  PackedNetwork packed =
      pack(spec, fold(spec, tensors, bf16 ? Folding::kRounded : Folding::kExact), vector_floats, bf16,
           tensors.at("head.out.weight").values.data(), tensors.at("head.out.bias").values.data());
  return std::make_unique<FoldedPort>(std::move(packed), bf16 ? avx512_bf16_forward() : forward_of(isa));
}

}  // namespace port
