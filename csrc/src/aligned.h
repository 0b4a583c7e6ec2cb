// SPDX-License-Identifier: Apache-2.0
// Memory on a cache-line boundary. Test: csrc/tests/test_refiner.cpp.
#pragma once

#include <cstddef>
#include <new>

namespace port {

class AlignedBuffer {
 public:
  explicit AlignedBuffer(std::size_t bytes) : data_(::operator new(bytes ? bytes : 1, std::align_val_t{64})) {}
  ~AlignedBuffer() { ::operator delete(data_, std::align_val_t{64}); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  template <typename T>
  T* as(std::size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + offset_bytes);
  }

 private:
  void* data_;
};

}  // namespace port
