// SPDX-License-Identifier: Apache-2.0
// The part of port_deploy._core that speaks to GPUs. Test: tests/test_cuda.py.
#pragma once

#include <pybind11/pybind11.h>

namespace port::python {

void bind_cuda(pybind11::module_& m);

}  // namespace port::python
