// SPDX-License-Identifier: Apache-2.0
// What takes the place of device_info.cu in a build without CUDA. Test: csrc/tests/test_info.cpp.
#include "port/port.hpp"

namespace port {

CudaInfo cuda_info() {
  CudaInfo info;
  info.detail = "built without CUDA: install the CUDA toolkit (nvcc) and build again with PORT_CUDA=ON";
  return info;
}

}  // namespace port
