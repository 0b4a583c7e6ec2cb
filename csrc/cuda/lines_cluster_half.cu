// SPDX-License-Identifier: Apache-2.0
// For compute capability 9.0 and later.
#include "lines.h"

const void* port::half_cluster_kernel(const LinePlan& plan) { return cluster_kernel_of<port::device::Half>(plan); }
