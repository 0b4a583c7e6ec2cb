// SPDX-License-Identifier: Apache-2.0
// Compiled to PTX alone, once per format and number of columns (csrc/cmake/Kernels.cmake): what `port-export --trt
// --fuse` puts into engines. Test: tests/test_fused_kernel.py.
#include <device/intrinsics.h>

#include "kernels/engine_layer.h"

PORT_ENGINE_LAYER(port_line, PORT_LAYER_FORMAT, PORT_LAYER_COLUMNS)
