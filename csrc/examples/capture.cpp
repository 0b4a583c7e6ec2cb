// SPDX-License-Identifier: Apache-2.0
// Refines poses inside a CUDA graph: capture MODEL.safetensors. The graph is captured once; every replay reads the
// joints that lie in device memory then. In a detector's pipeline the capture would begin before the detector's own
// kernels.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <vector>

#include "port/cuda.hpp"

#define CHECK(call)                                                               \
  do {                                                                            \
    const cudaError_t status = (call);                                            \
    if (status != cudaSuccess) {                                                  \
      std::fprintf(stderr, "error: %s: %s\n", #call, cudaGetErrorString(status)); \
      return 2;                                                                   \
    }                                                                             \
  } while (false)

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: capture MODEL.safetensors\n");
    return 2;
  }
  try {
    const auto model = port::Model::load(argv[1]);
    const port::CudaRefiner refiner(model);  // fp16 on device 0
    std::printf("%s\n", refiner.description().c_str());

    constexpr int kBatch = 4;
    const std::size_t rows = static_cast<std::size_t>(kBatch * model->joints());
    std::vector<float> joints(2 * rows), confidence(rows, 0.9f);
    std::vector<std::uint8_t> mask(rows);
    for (std::size_t i = 0; i < rows; ++i) {
      joints[2 * i] = static_cast<float>(i * 37 % 200);
      joints[2 * i + 1] = static_cast<float>(i * 91 % 200);
      if (i % 5 == 0) confidence[i] = 0.05f;  // hidden
    }
    float *device_joints, *device_confidence, *refined;
    std::uint8_t* device_mask;
    CHECK(cudaMalloc(reinterpret_cast<void**>(&device_joints), 2 * rows * sizeof(float)));
    CHECK(cudaMalloc(reinterpret_cast<void**>(&device_confidence), rows * sizeof(float)));
    CHECK(cudaMalloc(reinterpret_cast<void**>(&refined), 2 * rows * sizeof(float)));
    CHECK(cudaMalloc(reinterpret_cast<void**>(&device_mask), rows));

    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    refiner.refine(device_joints, device_confidence, kBatch, model->threshold(), {refined, nullptr, device_mask},
                   stream);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&replay, graph, 0));

    for (int frame = 0; frame < 3; ++frame) {
      for (float& v : joints) v += 1.0f;  // the next frame's
      CHECK(cudaMemcpyAsync(device_joints, joints.data(), 2 * rows * sizeof(float), cudaMemcpyHostToDevice, stream));
      CHECK(
          cudaMemcpyAsync(device_confidence, confidence.data(), rows * sizeof(float), cudaMemcpyHostToDevice, stream));
      CHECK(cudaGraphLaunch(replay, stream));
      std::vector<float> out(2 * rows);
      CHECK(cudaMemcpyAsync(out.data(), refined, 2 * rows * sizeof(float), cudaMemcpyDeviceToHost, stream));
      CHECK(cudaMemcpyAsync(mask.data(), device_mask, rows, cudaMemcpyDeviceToHost, stream));
      CHECK(cudaStreamSynchronize(stream));
      std::printf("frame %d: %s (%.2f, %.2f) -> (%.2f, %.2f)%s\n", frame, model->joint_names()[0].c_str(),
                  static_cast<double>(joints[0]), static_cast<double>(joints[1]), static_cast<double>(out[0]),
                  static_cast<double>(out[1]), mask[0] ? " rebuilt" : "");
    }
    CHECK(cudaGraphExecDestroy(replay));
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaStreamDestroy(stream));
    for (void* memory : {static_cast<void*>(device_joints), static_cast<void*>(device_confidence),
                         static_cast<void*>(refined), static_cast<void*>(device_mask)}) {
      CHECK(cudaFree(memory));
    }
  } catch (const port::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}
