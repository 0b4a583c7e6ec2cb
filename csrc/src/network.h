// SPDX-License-Identifier: Apache-2.0
// PORT itself (eqs. 4-11): framed joints to reconstructed joints, one object per instruction set and precision.
// Everything around it (decode, mask, frame, blend) is line.cpp. Test: csrc/tests/test_network.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "model.h"

namespace port {

class Network {
 public:
  virtual ~Network() = default;

  // Bytes of scratch memory that one call of forward needs, whatever its batch; 64-byte aligned by the caller.
  virtual std::size_t workspace_bytes() const = 0;

  // Bytes of packed weights, for reports.
  virtual std::size_t weight_bytes() const = 0;

  // inputs  [B][N][input_channels] framed joints, all finite
  // mask    [B][N] 0 or 1
  // needed  [B][N] 0 or 1: rows of `outputs` that will be read; other rows may hold anything
  // outputs [B][N][2] framed joints
  // log_std [B][N] log sigma as the network has it, or null; not null only of a model with a variance. Where it is not
  //         asked for it costs nothing, and `outputs` are the same bits either way.
  // Thread-safe: all mutable state is in `workspace`. Allocates nothing. Bit-identical whatever else is in the batch.
  virtual void forward(const float* inputs, const std::uint8_t* mask, const std::uint8_t* needed, std::int64_t batch,
                       float* outputs, float* log_std, void* workspace) const = 0;
};

// Folds and packs the weights once. The tensors are not kept.
std::unique_ptr<Network> make_network(const ModelSpec& spec, const Tensors& tensors, Isa isa, Precision precision);

// Whether this processor and build can run it (bf16: AVX512_BF16; elsewhere emulated bf16 is refused).
bool isa_available(Isa isa);
bool bf16_available();
const char* isa_name(Isa isa);  // "generic", "avx2", "avx512": the values of PORT_FORCE_ISA

}  // namespace port
