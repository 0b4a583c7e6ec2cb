// SPDX-License-Identifier: Apache-2.0
// PORT on NVIDIA GPUs: heatmaps or joints in device memory to refined joints in device memory, one kernel launch.
// The same model, options and rules as port.hpp. Needs no CUDA header: a stream is the runtime's cudaStream_t as it is.
// A build without CUDA has everything declared here; what needs a GPU throws Error(kUnavailable) that says what to do.
// csrc/examples/capture.cpp is a whole program. Tests: csrc/tests/emulated/, csrc/tests/gpu/, tests/test_cuda.py (on a
// GPU).
//
// Memory       HeatmapView::data, joints, confidence, affine and everything in Output are pointers that the device can
//              read and write: of its own memory, or mapped. They are not checked. Outputs may not overlap inputs,
//              except that refine() may work in place, as in port.hpp. Output::std is of models with a variance, as
//              there; null: not computed, and the joints are the same bits.
// Streams      Work is queued on the caller's `stream` (null: the default stream of the object's device) and nothing is
//              waited for: results are there when the stream has come that far. The host arrays of a call are not kept.
// Capture      refine(), run() and the cuda_decode functions may be called while `stream` is being captured into a CUDA
//              graph: they queue one kernel and nothing else. The pointers, the batch and the threshold become part of
//              the graph; the CudaRefiner must live as long as the graph.
// Allocation   Device memory is taken when a CudaRefiner is built (the packed weights, and nothing per call).
// Threads      Every const member may be called from any number of threads and on any number of streams at once.
// Devices      One CudaRefiner serves the device it was built for, whatever device the calling thread has current; that
//              is left as it was.
// Results      A pose's result does not depend on what else is in the batch, nor on its size: bit for bit on one kind
// of
//              GPU. It may differ in the last bits between kinds of GPU.
// Errors       Thrown on the caller's thread before anything is queued. A launch that CUDA refuses throws kUnavailable
//              with CUDA's own words. An error that an earlier kernel of the process left behind is reported, not
//              cleared away: after it, nothing of that process runs on that device.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "port/port.hpp"

struct CUstream_st;  // cudaStream_t is CUstream_st*

namespace port {

using CudaStream = CUstream_st*;

// How a batch is spread over the GPU. An empty CudaOptions::variant chooses by batch and device.
enum class CudaVariant {
  kBlock,       // a block of threads per pose: runs everywhere
  kCluster,     // a cluster of blocks per pose, for small batches: compute capability 9.0 and later
  kThroughput,  // several poses per block, for large batches
};

const char* to_string(CudaVariant variant);                     // "block", "cluster", "throughput"
CudaVariant cuda_variant_from_string(const std::string& name);  // Error(kInput) names the choices

// What is empty comes from the model.
struct CudaOptions {
  int device = 0;                             // as the CUDA runtime numbers them
  Precision precision = Precision::kFloat16;  // of the encoder's products; sums, softmax, LayerNorm, frame are fp32
  std::optional<CudaVariant> variant;         // fp32 has kBlock only
  std::optional<int> min_visible;             // >= 2
  std::optional<int> max_masked;              // >= 0
  std::optional<Refine> refine;
  std::optional<Codec> codec;
  std::optional<float> temperature;  // > 0
  std::optional<float> fusion;       // 0..1
};

// The threshold and the results of a layer inside somebody else's engine: everything on the device, the mask in the
// whole numbers that engines have tensors of.
struct CudaLayerOutput {
  const float* threshold = nullptr;  // [1], read when the kernel runs
  float* joints = nullptr;           // [B][N][2]
  float* confidence = nullptr;       // [B][N] or null
  std::int32_t* mask = nullptr;      // [B][N] or null; 0 or 1
  float* std = nullptr;              // [B][N] or null; of models with a variance only, as Output::std
};

class CudaRefiner {
 public:
  // Packs the weights and copies them to the device; synchronises that copy, and nothing later does.
  // Error(kInput): an option is out of range; Error(kUnavailable): no such device, no CUDA in this build, or the device
  // cannot do what was asked (bf16 before compute capability 8.0, a variant, a network too large for its shared
  // memory).
  explicit CudaRefiner(std::shared_ptr<const Model> model, const CudaOptions& options = {});
  ~CudaRefiner();  // waits for the device: kernels in flight read the weights
  CudaRefiner(CudaRefiner&&) noexcept;
  CudaRefiner& operator=(CudaRefiner&&) noexcept;

  // Behind any detector: joints [batch][N][2], confidence [batch][N]. As Refiner::refine().
  void refine(const float* joints, const float* confidence, std::int64_t batch, float threshold, const Output& out,
              CudaStream stream) const;

  // From heatmaps of float32, float16 or bfloat16. affine [B][2][3] or null. As Refiner::run().
  void run(const HeatmapView& heatmaps, const float* affine, float threshold, const Output& out,
           CudaStream stream) const;

  // The same as a layer of an engine, whose threshold is not known when the work is queued.
  void refine(const float* joints, const float* confidence, std::int64_t batch, const CudaLayerOutput& out,
              CudaStream stream) const;
  void run(const HeatmapView& heatmaps, const float* affine, const CudaLayerOutput& out, CudaStream stream) const;

  const Model& model() const;
  int device() const;
  Precision precision() const;
  CudaVariant variant(std::int64_t batch) const;  // that a call with so many poses takes
  std::size_t weight_bytes() const;               // packed, on the device
  // One line for people: device, compute capability, precision, and how a batch of one runs.
  std::string description() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A CudaRefiner for arrays in host memory: copies them to the device, computes, copies the results back and waits. For
// scripts, and for callers whose detector runs elsewhere; the copies cost more than the refinement. Any number of
// threads may call at once: each waits for its own work only. Device memory is kept from call to call.
class CudaFromHost {
 public:
  // `refiner` must outlive it. Error(kUnavailable): the device has no memory pools.
  explicit CudaFromHost(const CudaRefiner& refiner);
  ~CudaFromHost();
  CudaFromHost(const CudaFromHost&) = delete;
  CudaFromHost& operator=(const CudaFromHost&) = delete;

  // As Refiner::refine() and Refiner::run(); heatmaps dense. Error(kUnavailable): the device has no memory left.
  void refine(const float* joints, const float* confidence, std::int64_t batch, float threshold,
              const Output& out) const;
  void run(const HeatmapView& heatmaps, const float* affine, float threshold, const Output& out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The fused decode alone, as port::decode(), on `device` and `stream`.
void cuda_decode(const HeatmapView& heatmaps, Codec codec, float temperature, float threshold, const Output& out,
                 int device, CudaStream stream);

// port::decode_peaks() likewise, and port::decode_simcc(): the processor's rules for borders, ties and broken maps.
void cuda_decode_peaks(const HeatmapView& heatmaps, PeakCodec codec, int blur, float threshold, const Output& out,
                       int device, CudaStream stream);
void cuda_decode_simcc(const HeatmapView& x, const HeatmapView& y, float split_ratio, SimccScore score, float threshold,
                       const Output& out, int device, CudaStream stream);

}  // namespace port
