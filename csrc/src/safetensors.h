// SPDX-License-Identifier: Apache-2.0
// The container of a model file: header length, JSON header, tensor bytes; every number in it distrusted.
// Test: csrc/tests/test_model.cpp.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "model.h"

namespace port {

constexpr std::size_t kMaxHeaderBytes = std::size_t{4} << 20;

struct Safetensors {
  std::map<std::string, std::string> metadata;
  Tensors tensors;  // float32; float16 is widened
};

// Throws Error(kModelFile): header longer than the file or kMaxHeaderBytes, not JSON, a dtype other than F32 and F16,
// offsets that overlap, leave a hole, lie outside the file or do not fit the shape, values that are not finite.
// Memory taken is at most a small multiple of `size`, whatever the header claims.
Safetensors parse_safetensors(const void* data, std::size_t size);

}  // namespace port
