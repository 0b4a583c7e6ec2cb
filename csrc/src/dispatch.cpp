// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "network.h"
#include "port/cuda.hpp"

#ifndef PORT_VERSION
#define PORT_VERSION "unknown"
#endif

namespace port {
namespace {

constexpr Isa kAllIsas[] = {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512};

std::string listed(const std::vector<Isa>& isas) {
  std::string text;
  for (const Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(to_string(isa));
  return text;
}

template <typename T>
T from_string(const char* what, const std::string& name, const std::vector<T>& choices) {
  std::string known;
  for (const T choice : choices) {
    if (name == to_string(choice)) return choice;
    known += (known.empty() ? "" : ", ") + std::string(to_string(choice));
  }
  throw Error(ErrorCode::kInput, std::string("unknown ") + what + " '" + name + "': use one of " + known);
}

std::string compiler() {
#if defined(__clang__)
  return std::string("Clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("GNU ") + __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

const char* to_string(Codec codec) {
  switch (codec) {
    case Codec::kSoftargmax:
      return "softargmax";
    case Codec::kSoftargmaxSum:
      return "softargmax-sum";
    case Codec::kArgmax:
      return "argmax";
  }
  return "unknown";
}
const char* to_string(Frame frame) { return frame == Frame::kPaper ? "paper" : "visible"; }
const char* to_string(Refine refine) { return refine == Refine::kAll ? "all" : "masked"; }
const char* to_string(Isa isa) { return isa_name(isa); }
const char* to_string(Precision precision) {
  return precision == Precision::kBfloat16 ? "bf16" : precision == Precision::kFloat16 ? "fp16" : "fp32";
}

const char* to_string(CudaVariant variant) {
  return variant == CudaVariant::kBlock ? "block" : variant == CudaVariant::kCluster ? "cluster" : "throughput";
}
const char* to_string(PeakCodec codec) {
  return codec == PeakCodec::kUdp ? "udp" : codec == PeakCodec::kDark ? "dark" : "msra";
}
const char* to_string(SimccScore score) { return score == SimccScore::kMean ? "mean" : "min"; }

Codec codec_from_string(const std::string& name) {
  return from_string<Codec>("codec", name, {Codec::kSoftargmax, Codec::kSoftargmaxSum, Codec::kArgmax});
}
PeakCodec peak_codec_from_string(const std::string& name) {
  return from_string<PeakCodec>("codec", name, {PeakCodec::kMsra, PeakCodec::kDark, PeakCodec::kUdp});
}
SimccScore simcc_score_from_string(const std::string& name) {
  return from_string<SimccScore>("score rule", name, {SimccScore::kMin, SimccScore::kMean});
}
Isa isa_from_string(const std::string& name) {
  return from_string<Isa>("instruction set", name, {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512});
}
Precision precision_from_string(const std::string& name) {
  return from_string<Precision>("precision", name, {Precision::kFloat32, Precision::kBfloat16, Precision::kFloat16});
}
CudaVariant cuda_variant_from_string(const std::string& name) {
  return from_string<CudaVariant>("CUDA variant", name,
                                  {CudaVariant::kBlock, CudaVariant::kCluster, CudaVariant::kThroughput});
}
Refine refine_from_string(const std::string& name) {
  return from_string<Refine>("refine", name, {Refine::kMasked, Refine::kAll});
}

std::vector<Isa> compiled_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : kAllIsas) {
    if (decode_for(isa)) isas.push_back(isa);
  }
  return isas;
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> available = [] {
    std::vector<Isa> isas;
    for (const Isa isa : compiled_isas()) {
      if (isa_available(isa)) isas.push_back(isa);
    }
    return isas;
  }();
  return available;
}

Isa select_isa(std::optional<Isa> asked) {
  const std::vector<Isa>& available = available_isas();
  const char* who = "instruction set";
  if (!asked) {
    const char* forced = std::getenv("PORT_FORCE_ISA");
    if (!forced || !*forced) return available.back();
    who = "PORT_FORCE_ISA:";
    for (const Isa isa : kAllIsas) {
      if (std::strcmp(forced, to_string(isa)) == 0) asked = isa;
    }
    if (!asked) {
      throw Error(ErrorCode::kUnavailable, std::string("PORT_FORCE_ISA names the unknown instruction set '") + forced +
                                               "': use one of " + listed(available) + ", or unset it");
    }
  }
  for (const Isa isa : available) {
    if (isa == *asked) return isa;
  }
  throw Error(ErrorCode::kUnavailable, std::string(who) + " '" + to_string(*asked) +
                                           "' is not in this build or processor: use one of " + listed(available));
}

DecodeFn decode_for(Isa isa) {
  return isa == Isa::kAvx512 ? avx512_decode() : isa == Isa::kAvx2 ? avx2_decode() : generic_decode();
}

BuildInfo build_info() {
  BuildInfo info;
  info.version = PORT_VERSION;
  info.compiler = compiler();
  info.compiled_isas = compiled_isas();
  info.available_isas = available_isas();
  info.selected_isa = select_isa(std::nullopt);
  info.bf16 = info.selected_isa == Isa::kAvx512 && bf16_available();
  info.cuda = cuda_info().compiled;
  return info;
}

}  // namespace port
