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

// kUnavailable where `status` says that `device` cannot be used at all.
inline void require_device(cudaError_t status, int device) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error(ErrorCode::kUnavailable, "CUDA device " + std::to_string(device) + " cannot be used (" +
                                           cudaGetErrorString(status) +
                                           "): check nvidia-smi, or use the processor (port::Refiner, port::decode)");
}

// Makes `device` the calling thread's and restores what it had.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    require_device(cudaGetDevice(&before_), device);
    if (device != before_) require_device(cudaSetDevice(device), device);
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
