// SPDX-License-Identifier: Apache-2.0
// NumPy arrays as plain pointers, checked: whatever Python passes, nothing is read or written outside it.
// port_deploy/arrays.py says friendlier things before; this is what keeps the process alive. Test: tests/test_core.py.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "port/port.hpp"

namespace port::python {

namespace py = pybind11;

[[noreturn]] inline void input_error(const std::string& message) { throw Error(ErrorCode::kInput, message); }

inline std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + "]";
}

// Kind ('f', 'b') and size of an element in the machine's byte order.
inline bool is_dtype(const py::array& array, char kind, py::ssize_t size) {
  const py::dtype dtype = array.dtype();
  return dtype.kind() == kind && dtype.itemsize() == size && (dtype.byteorder() == '=' || dtype.byteorder() == '|');
}

inline bool aligned(const py::array& array) { return (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0; }

// The address of a C-contiguous array of exactly that shape and dtype.
inline void* dense(const py::array& array, const char* name, char kind, py::ssize_t size,
                   std::initializer_list<py::ssize_t> shape, bool write) {
  const bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
                    std::equal(shape.begin(), shape.end(), array.shape()) && is_dtype(array, kind, size);
  if (!fits || (array.flags() & py::array::c_style) == 0 || !aligned(array) || (write && !array.writeable())) {
    std::string wanted;
    for (const py::ssize_t extent : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(extent);
    input_error("expected " + std::string(name) + " " + kind + std::to_string(size) + " [" + wanted +
                "], C-contiguous" + (write ? " and writable" : "") + ", got " +
                std::string(py::str(py::object(array.dtype()))) + " " + shape_text(array));
  }
  return const_cast<void*>(array.data());
}

// First and one-past-last byte of an array, whatever the signs of its strides.
struct Extent {
  std::uintptr_t begin = 0, end = 0;

  explicit Extent(const py::array& array) {
    if (array.size() == 0) return;
    begin = reinterpret_cast<std::uintptr_t>(array.data());
    end = begin + static_cast<std::uintptr_t>(array.itemsize());
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
      const py::ssize_t reach = (array.shape(i) - 1) * array.strides(i);
      if (reach >= 0) {
        end += static_cast<std::uintptr_t>(reach);
      } else {
        begin -= static_cast<std::uintptr_t>(-reach);
      }
    }
  }

  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

// Outputs may lie in no other array of the call; `in_place` allows that pair to be one and the same.
inline void check_apart(const py::array& written, const py::array& other, const char* names, bool in_place) {
  if (in_place && written.data() == other.data()) return;
  if (Extent(written).overlaps(Extent(other))) {
    input_error("expected " + std::string(names) + " in memory of their own, they overlap: pass separate arrays");
  }
}

// Heatmaps where they lie: [B, N, H, W] of float32 or float16, last axis dense, other strides whole elements.
inline HeatmapView heatmap_view(const py::array& maps) {
  const bool half = is_dtype(maps, 'f', 2);
  if (maps.ndim() != 4 || !aligned(maps) || !(half || is_dtype(maps, 'f', 4))) {
    input_error("expected heatmaps [B, N, H, W] float32 or float16, aligned, got " +
                std::string(py::str(py::object(maps.dtype()))) + " " + shape_text(maps));
  }
  const py::ssize_t size = maps.itemsize();
  for (py::ssize_t i = 0; i < 4; ++i) {
    const bool whole = maps.strides(i) % size == 0 && (i < 3 || maps.strides(i) == size || maps.shape(i) <= 1);
    if (!whole && maps.size() > 0) input_error("expected heatmaps whose last axis is dense: numpy.ascontiguousarray()");
    if (i > 0 && maps.shape(i) > 4096) input_error("expected heatmap axes of at most 4096, got " + shape_text(maps));
  }
  HeatmapView view;
  view.data = maps.data();
  view.dtype = half ? DType::kFloat16 : DType::kFloat32;
  view.batch = maps.shape(0);
  view.joints = static_cast<int>(maps.shape(1));
  view.height = static_cast<int>(maps.shape(2));
  view.width = static_cast<int>(maps.shape(3));
  view.stride_b = maps.strides(0) / size;
  view.stride_n = maps.strides(1) / size;
  view.stride_h = maps.strides(2) / size;
  return view;
}

// [batch][joints] results of a call, checked against each other.
inline Output output(const py::array& joints, const py::array& confidence, const py::array& mask, py::ssize_t batch,
                     py::ssize_t count) {
  Output out;
  out.joints = static_cast<float*>(dense(joints, "out.joints", 'f', 4, {batch, count, 2}, true));
  out.confidence = static_cast<float*>(dense(confidence, "out.confidence", 'f', 4, {batch, count}, true));
  out.mask = static_cast<std::uint8_t*>(dense(mask, "out.mask", 'b', 1, {batch, count}, true));
  check_apart(joints, confidence, "out.joints and out.confidence", false);
  check_apart(joints, mask, "out.joints and out.mask", false);
  check_apart(confidence, mask, "out.confidence and out.mask", false);
  return out;
}

// The same for sigma, where it is wanted.
inline void add_std(const py::array& std, const py::array& joints, const py::array& confidence, const py::array& mask,
                    py::ssize_t batch, py::ssize_t count, Output* out) {
  out->std = static_cast<float*>(dense(std, "out.std", 'f', 4, {batch, count}, true));
  check_apart(std, joints, "out.joints and out.std", false);
  check_apart(std, confidence, "out.confidence and out.std", false);
  check_apart(std, mask, "out.mask and out.std", false);
}

}  // namespace port::python
