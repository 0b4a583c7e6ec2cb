// SPDX-License-Identifier: Apache-2.0
// What the library says about itself, names and their inverses, and the choice of an instruction set.
#include <cstdlib>
#include <string>

#include "dispatch.h"
#include "testing.h"

using port::ErrorCode;
using port::Isa;

TEST(names_and_inverses) {
  for (const auto codec : {port::Codec::kSoftargmax, port::Codec::kSoftargmaxSum, port::Codec::kArgmax}) {
    CHECK(port::codec_from_string(port::to_string(codec)) == codec);
  }
  for (const auto isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    CHECK(port::isa_from_string(port::to_string(isa)) == isa);
  }
  for (const auto precision : {port::Precision::kFloat32, port::Precision::kBfloat16}) {
    CHECK(port::precision_from_string(port::to_string(precision)) == precision);
  }
  for (const auto refine : {port::Refine::kMasked, port::Refine::kAll}) {
    CHECK(port::refine_from_string(port::to_string(refine)) == refine);
  }
  CHECK_ERROR(ErrorCode::kInput, "softargmax, softargmax-sum, argmax", port::codec_from_string("dark"));
  CHECK_ERROR(ErrorCode::kInput, "generic, avx2, avx512", port::isa_from_string("sse"));
  CHECK_ERROR(ErrorCode::kInput, "fp32, bf16, fp16", port::precision_from_string("int8"));
  CHECK_ERROR(ErrorCode::kInput, "masked, all", port::refine_from_string(""));
}

TEST(build_info) {
  const port::BuildInfo info = port::build_info();
  CHECK(info.version.find('.') != std::string::npos && !info.compiler.empty());
  CHECK(!info.compiled_isas.empty() && info.compiled_isas.front() == Isa::kGeneric);
  CHECK(info.available_isas.size() <= info.compiled_isas.size() && !info.available_isas.empty());
}

TEST(forced_isa) {
  for (const Isa isa : port::available_isas()) {
    setenv("PORT_FORCE_ISA", port::to_string(isa), 1);
    CHECK(port::build_info().selected_isa == isa && port::select_isa(std::nullopt) == isa);
    CHECK(port::select_isa(Isa::kGeneric) == Isa::kGeneric);  // what the caller asks for comes first
  }
  setenv("PORT_FORCE_ISA", "avx1024", 1);
  CHECK_ERROR(ErrorCode::kUnavailable, "'avx1024': use one of generic", port::build_info());
  setenv("PORT_FORCE_ISA", "", 1);
  CHECK(port::select_isa(std::nullopt) == port::available_isas().back());
  unsetenv("PORT_FORCE_ISA");
  CHECK(port::select_isa(std::nullopt) == port::available_isas().back());
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    bool available = false;
    for (const Isa candidate : port::available_isas()) available = available || candidate == isa;
    if (!available) CHECK_ERROR(ErrorCode::kUnavailable, port::to_string(isa), port::select_isa(isa));
  }
}

TEST(cuda_info) {
  const port::CudaInfo info = port::cuda_info();
  CHECK(info.compiled == port::build_info().cuda && !info.detail.empty());
  if (!info.compiled) CHECK(info.devices.empty() && info.detail.find("PORT_CUDA=ON") != std::string::npos);
  for (const port::CudaDevice& device : info.devices) CHECK(!device.name.empty() && device.major >= 3);
}

int main() { return port_test::run_tests(); }
