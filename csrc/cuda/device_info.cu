// SPDX-License-Identifier: Apache-2.0
// The GPUs of this machine, through the statically linked CUDA runtime: works, and finds none, where there is no
// driver. Test: csrc/tests/test_info.cpp.
#include <cuda_runtime_api.h>

#include "port/port.hpp"

namespace port {

CudaInfo cuda_info() {
  CudaInfo info;
  info.compiled = true;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // a sticky error would surface in the next caller's check
    info.detail = std::string("built with CUDA, but no GPU can be used: ") + cudaGetErrorString(status);
    return info;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
      cudaGetLastError();
      continue;
    }
    info.devices.push_back({i, properties.name, properties.major, properties.minor});
  }
  info.detail = "built with CUDA, " + std::to_string(info.devices.size()) + " GPU(s)";
  return info;
}

}  // namespace port
