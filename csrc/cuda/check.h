// SPDX-License-Identifier: Apache-2.0
// CUDA's status codes as port::Error, and the thread's device for the length of a call. Only .cu files include it.
// Test: csrc/tests/gpu/, tests/test_cuda.py (on a GPU), csrc/tests/test_cuda_api.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "port/port.hpp"

namespace port {

// kUnavailable with CUDA's words. The status that the runtime remembers is cleared unless it is sticky (then it stays).
[[noreturn]] inline void cuda_failure(cudaError_t status, const char* what) {
  cudaGetLastError();
  throw Error(ErrorCode::kUnavailable, std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(status));
}

#define PORT_CUDA_CHECK(call)                                                 \
  do {                                                                        \
    const cudaError_t port_status = (call);                                   \
    if (port_status != cudaSuccess) ::port::cuda_failure(port_status, #call); \
  } while (false)

// Makes `device` the calling thread's and restores what it had.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    PORT_CUDA_CHECK(cudaGetDevice(&before_));
    if (device != before_) PORT_CUDA_CHECK(cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace port
