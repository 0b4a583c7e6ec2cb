// SPDX-License-Identifier: Apache-2.0
// port_deploy._core.try_decode: the decode for arguments that nobody has checked, as a plain C function. pybind11's
// conversions and the checks of port_deploy/arrays.py take as long as a third of the decode of a whole pose, so
// port_deploy.decode asks here first. Nothing is written, and False is answered, unless every argument is exactly what
// the decode takes; then those checks say in words why it is not, or convert what can be converted.
// Test: tests/test_core.py.
#pragma once

#include <Python.h>

#include <optional>

#include "host_array.h"
#include "port/port.hpp"

namespace port::python {

inline std::optional<Codec> exact_codec(PyObject* name) {
  if (!PyUnicode_CheckExact(name)) return std::nullopt;
  for (const Codec codec : {Codec::kSoftargmax, Codec::kSoftargmaxSum, Codec::kArgmax}) {
    if (PyUnicode_CompareWithASCIIString(name, to_string(codec)) == 0) return codec;
  }
  return std::nullopt;
}

// (heatmaps, codec, temperature, threshold, joints, confidence, mask, threads) -> bool. Never raises for want of fit.
inline PyObject* try_decode(PyObject* /*module*/, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 8) {
    PyErr_Format(PyExc_TypeError, "expected 8 arguments, got %zd", count);
    return nullptr;
  }
  const std::optional<Codec> codec = exact_codec(arguments[1]);
  const bool numbers =
      PyFloat_CheckExact(arguments[2]) && PyFloat_CheckExact(arguments[3]) && PyLong_CheckExact(arguments[7]);
  const auto is_array = [](PyObject* object) { return py::detail::npy_api::get().PyArray_Check_(object); };
  if (!codec || !numbers || !is_array(arguments[0]) || !is_array(arguments[4]) || !is_array(arguments[5]) ||
      !is_array(arguments[6])) {
    Py_RETURN_FALSE;
  }
  int overflow = 0;
  const long threads = PyLong_AsLongAndOverflow(arguments[7], &overflow);
  if (overflow != 0 || threads < 0 || threads > 256) Py_RETURN_FALSE;
  try {
    const auto array = [&](int i) { return py::reinterpret_borrow<py::array>(arguments[i]); };
    const py::array maps = array(0), joints = array(4), confidence = array(5), mask = array(6);
    const HeatmapView view = heatmap_view(maps);
    const Output out = output(joints, confidence, mask, view.batch, view.joints);
    for (const py::array* written : {&joints, &confidence, &mask}) {
      check_apart(*written, maps, "heatmaps and out", false);
    }
    const auto temperature = static_cast<float>(PyFloat_AS_DOUBLE(arguments[2]));
    const auto threshold = static_cast<float>(PyFloat_AS_DOUBLE(arguments[3]));
    const py::gil_scoped_release released;
    decode(view, *codec, temperature, threshold, out, static_cast<int>(threads));
  } catch (const Error&) {
    Py_RETURN_FALSE;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  Py_RETURN_TRUE;
}

}  // namespace port::python
