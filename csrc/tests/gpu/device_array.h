// SPDX-License-Identifier: Apache-2.0
// Device memory for tests: filled from the host, or poisoned.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace port_test {

inline void must(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) {
    must(cudaMalloc(reinterpret_cast<void**>(&data_), (count ? count : 1) * sizeof(T)), "cudaMalloc");
    must(cudaMemset(data_, 0xff, count * sizeof(T)), "cudaMemset");  // NaN, or a mask that is neither 0 nor 1
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { put(values); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  void put(const std::vector<T>& values) {
    must(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  std::vector<T> get() const {  // waits for the device
    std::vector<T> values(count_);
    must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    must(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }
  T* data() const { return data_; }

 private:
  std::size_t count_;
  T* data_ = nullptr;
};

}  // namespace port_test
