// SPDX-License-Identifier: Apache-2.0
#include "lines.h"

const void* port::bfloat_block_kernel(const LinePlan& plan) { return block_kernel_of<port::device::Bfloat>(plan); }
