// SPDX-License-Identifier: Apache-2.0
// What every launch of engine_layer.h's kernel has in common: plain data for the host that writes it and the kernel.
#pragma once

#include "layout.h"

namespace port::kernels {

struct EngineConstants {
  LineParams line;      // all pointers null; batch and threshold come with the launch
  int32_t from_maps;    // `first` is heatmaps, `second` is affine; else joints and confidence
  int32_t state_words;  // of a row of `state`; N: mask alone
  int32_t partials_at;  // word of that row where the partial sums begin; 0: they are in shared memory
};

}  // namespace port::kernels
