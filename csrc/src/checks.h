// SPDX-License-Identifier: Apache-2.0
// What every public call checks before it touches memory. All throw Error(kInput). Test: csrc/tests/test_refiner.cpp.
#pragma once

#include <cstdint>

#include "port/port.hpp"

namespace port {

[[noreturn]] void input_error(const std::string& message);

void check_threshold(float threshold);
void check_batch(std::int64_t batch);
void check_view(const HeatmapView& view);               // any memory, any dtype
void check_host_view(const HeatmapView& view);          // for the processor
void check_std(const Output& out, const Model& model);  // wanted only of a model that has a variance
void check_joints(const HeatmapView& view, const Model& model);
void check_blur(int blur);
void check_simcc(const HeatmapView& x, const HeatmapView& y);  // beside check_view of each
void check_positive(const char* what, float value);
// Number of threads that compute: 1..256, 0 meaning one per processor.
int resolve_threads(int threads);

}  // namespace port
