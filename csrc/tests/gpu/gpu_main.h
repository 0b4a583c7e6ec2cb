// SPDX-License-Identifier: Apache-2.0
// What the main() of every test on a real GPU does: skipped where there is none, a failure there if PORT_REQUIRE names
// cuda.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "port/cuda.hpp"
#include "testing.h"

namespace port_test {

inline int run_gpu_tests() {
  if (port::cuda_info().devices.empty()) {
    const char* required = std::getenv("PORT_REQUIRE");
    const bool must_run = required && std::strstr(required, "cuda");
    std::printf("%s: %s\n", must_run ? "FAILED: PORT_REQUIRE names cuda" : "skipped", port::cuda_info().detail.c_str());
    return must_run ? 1 : 77;
  }
  return run_tests();
}

}  // namespace port_test
