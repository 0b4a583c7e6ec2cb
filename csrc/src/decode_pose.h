// SPDX-License-Identifier: Apache-2.0
// The seam between the decode kernels and those who have a batch of heatmaps. Test: csrc/tests/test_decode.cpp.
#pragma once

#include <cstdint>

#include "decode.h"
#include "port/port.hpp"
#include "thread_pool.h"

namespace port {

// What is settled once per model or call.
struct DecodeSettings {
  DecodeFn kernel;
  MapCodec codec;
  float temperature;

  DecodeSettings(DecodeFn fn, Codec how, float t);
  MapShape shape_of(const HeatmapView& view) const;
};

// Joints first .. first + count - 1 of pose `pose`: joints [count][2], confidence [count]; shape: of that view;
// scratch: kDecodeScratch floats, 64-byte aligned.
void decode_joints(DecodeFn kernel, const MapShape& shape, const HeatmapView& view, std::int64_t pose, int first,
                   int count, float* scratch, float* joints, float* confidence);

// work(context, pose) for every pose, on at most `threads` threads, those of the process's one set for decoding.
void for_each_pose(std::int64_t batch, int threads, ThreadPool::Work work, void* context);

}  // namespace port
