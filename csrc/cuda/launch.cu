// SPDX-License-Identifier: Apache-2.0
#include "check.h"
#include "launch.h"

namespace port {

void launch(const Launch& what, const void* params, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(what.blocks);
  config.blockDim = dim3(what.threads);
  config.dynamicSmemBytes = what.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (what.cluster > 1) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = what.cluster;
    a.val.clusterDim.y = a.val.clusterDim.z = 1;
  }
  if (what.overlap) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  void* arguments[] = {const_cast<void*>(params)};
  PORT_CUDA_CHECK(cudaLaunchKernelExC(&config, what.kernel, arguments));
}

}  // namespace port
