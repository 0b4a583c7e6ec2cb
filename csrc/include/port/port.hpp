// SPDX-License-Identifier: Apache-2.0
// PORT for C++: detector heatmaps or joints in, occlusion-repaired joints out. C++17, no dependency but the standard
// library. `find_package(port_deploy)`, link `port_deploy::port`; csrc/examples/refine.cpp is a whole program.
// Tests: csrc/tests/, tests/test_cpp.py.
//
// Legend: B poses, N joints, H x W heatmap. All arrays are row-major and dense unless a stride says otherwise.
// Joints are (x, y) in pixels, origin at the centre of the top-left pixel.
//
// Threads      Every const member function and every free function may be called from any number of threads at once,
//              on one object. Work is spread over the Refiner's own threads (Options::threads, caller included); with
//              threads = 1 the caller does all of it. Callers that come while those threads are busy do their own
//              work themselves: nobody waits for anybody. After a fork() the child computes on the caller only.
// Results      Bit-identical for any thread count, batch size and order: a pose does not know its neighbours. They may
//              differ in the last bits between instruction sets.
// Allocation   All memory is taken when a Refiner is built. refine() and run() allocate nothing, except that the first
//              call that finds more callers at once than ever before takes one workspace for the new one.
// Streams      This is the CPU path: calls return when the result is in memory. The CUDA path, port/cuda.hpp, has the
//              same calls with device pointers in HeatmapView and Output and a stream beside them.
// Errors       Exceptions of type port::Error only, thrown on the caller's thread before anything is written
// (std::bad_alloc
//              aside). Bad numbers (NaN, infinity) in the data are not errors: they make that joint missing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace port {

enum class ErrorCode {
  kInput,       // an argument is not what the call takes
  kModelFile,   // a model file is broken, foreign or hostile
  kUnavailable  // this processor or this build cannot do what was asked
};

// what() is one line: what was expected, what came, what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

// How a heatmap becomes a joint, eq. (1): expectation under softmax(temperature * map); under the map clipped at 0 and
// divided by its sum; the first largest pixel in row-major order.
enum class Codec { kSoftargmax, kSoftargmaxSum, kArgmax };
// How detectors' own evaluations find a joint from the largest pixel: a quarter pixel towards the larger neighbour; one
// Newton step on the logarithm of the blurred map, as DARK or as UDP takes it.
enum class PeakCodec { kMsra, kDark, kUdp };
// Confidence of a joint from the maxima of its two SimCC vectors: MMPose and mmdeploy take the lesser, rtmlib the mean.
enum class SimccScore { kMin, kMean };
// Coordinates that the network sees: relative to the visible joints, or as in the authors' script.
enum class Frame { kVisible, kPaper };
// Which joints of a refined pose change: the masked ones, or all.
enum class Refine { kMasked, kAll };
enum class Isa { kGeneric, kAvx2, kAvx512 };
enum class Precision { kFloat32, kBfloat16, kFloat16 };  // kFloat16: on GPUs only
enum class DType { kFloat32, kFloat16, kBfloat16 };      // kBfloat16: on GPUs only

const char* to_string(Codec codec);          // "softargmax", "softargmax-sum", "argmax"
const char* to_string(Frame frame);          // "visible", "paper"
const char* to_string(Refine refine);        // "masked", "all"
const char* to_string(Isa isa);              // "generic", "avx2", "avx512"
const char* to_string(Precision precision);  // "fp32", "bf16", "fp16"

const char* to_string(PeakCodec codec);   // "msra", "dark", "udp"
const char* to_string(SimccScore score);  // "min", "mean"

// The inverses. Error(kInput) names the choices.
PeakCodec peak_codec_from_string(const std::string& name);
SimccScore simcc_score_from_string(const std::string& name);
Codec codec_from_string(const std::string& name);
Isa isa_from_string(const std::string& name);
Precision precision_from_string(const std::string& name);
Refine refine_from_string(const std::string& name);

struct ModelData;

// A model file in memory: immutable, shared by any number of Refiners.
class Model {
 public:
  // Reads a .safetensors file written by port-train. Error(kInput): no such file; Error(kModelFile): not a usable
  // model.
  static std::shared_ptr<const Model> load(const std::string& path);
  // The same from memory; `data` is not kept. `source` names it in messages.
  static std::shared_ptr<const Model> from_buffer(const void* data, std::size_t size,
                                                  const std::string& source = "model");

  const std::string& name() const;
  const std::string& skeleton() const;
  int joints() const;  // N
  const std::vector<std::string>& joint_names() const;
  float threshold() const;  // the calibrated one, eq. (13)
  Codec codec() const;
  float temperature() const;
  Frame frame() const;
  Refine refine() const;
  int min_visible() const;
  int max_masked() const;
  float fusion() const;
  float confidence_divisor() const;
  bool variance() const;    // it can fill Output::std
  float std_scale() const;  // factor on the network's sigma
  std::size_t parameter_count() const;

  explicit Model(std::unique_ptr<const ModelData> data);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  const ModelData& data() const { return *data_; }  // for the library itself

 private:
  std::unique_ptr<const ModelData> data_;
};

// What is empty comes from the model.
struct Options {
  int threads = 0;         // that compute, the caller included; 0: one per processor; at most 256
  std::optional<Isa> isa;  // empty: PORT_FORCE_ISA if set, else the best that this processor and build have
  Precision precision = Precision::kFloat32;
  std::optional<int> min_visible;  // >= 2
  std::optional<int> max_masked;   // >= 0
  std::optional<Refine> refine;
  std::optional<Codec> codec;
  std::optional<float> temperature;  // > 0
  std::optional<float> fusion;       // 0..1
};

// Heatmaps [B][N][H][W] where the detector left them. Strides are in elements and may be negative; w has stride 1.
struct HeatmapView {
  const void* data = nullptr;  // may be null when batch is 0
  DType dtype = DType::kFloat32;
  std::int64_t batch = 0;                 // B
  int joints = 0, height = 0, width = 0;  // N, H, W; H, W from 1 to 4096
  std::int64_t stride_b = 0, stride_n = 0, stride_h = 0;

  static HeatmapView dense(const void* data, DType dtype, std::int64_t batch, int joints, int height, int width) {
    const std::int64_t row = width, map = row * height;
    return {data, dtype, batch, joints, height, width, map * joints, map, row};
  }
};

// Where results go: the caller's memory. `confidence`, `mask` and `std` may be null if they are not wanted.
struct Output {
  float* joints = nullptr;       // [B][N][2] pixels
  float* confidence = nullptr;   // [B][N]; 0..1 from heatmaps, a copy of the caller's from joints
  std::uint8_t* mask = nullptr;  // [B][N] 0 or 1: the joint was rebuilt (from decode(): is below the threshold)
  // [B][N] pixels: standard deviation of a coordinate of each rebuilt joint, NaN where the mask is 0. Only of models
  // with a variance (Error(kInput) of others); the decode functions leave it alone.
  float* std = nullptr;
};

// The whole line of port_deploy/nn/line.py, whose docstring has the rules for missing, masked and refined.
class Refiner {
 public:
  // Packs the weights, starts the threads, takes the memory.
  // Error(kInput): an option is out of range; Error(kUnavailable): ISA or precision are not to be had here.
  explicit Refiner(std::shared_ptr<const Model> model, const Options& options = {});
  ~Refiner();
  Refiner(Refiner&&) noexcept;
  Refiner& operator=(Refiner&&) noexcept;

  // Behind any detector. joints [batch][N][2] and confidence [batch][N] host memory, batch >= 0; threshold finite, >=
  // 0. out.joints may be `joints` and out.confidence may be `confidence` (in place); any other overlap is an error of
  // the caller. Error(kInput): null pointer, negative batch, unusable threshold.
  void refine(const float* joints, const float* confidence, std::int64_t batch, float threshold,
              const Output& out) const;

  // From heatmaps. affine [B][2][3] takes heatmap pixels to image pixels; null: joints stay in heatmap pixels.
  // Outputs overlap no input. Error(kInput) also where the view does not fit the model.
  void run(const HeatmapView& heatmaps, const float* affine, float threshold, const Output& out) const;

  const Model& model() const;
  int threads() const;
  Isa isa() const;
  Precision precision() const;
  std::size_t weight_bytes() const;     // packed weights
  std::size_t workspace_bytes() const;  // scratch of one thread

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The fused decode alone, eqs. (1), (2), (13): joints in heatmap pixels, confidence, and mask = missing or below
// `threshold`. A map that holds NaN or +inf gives joint (NaN, NaN) and confidence 0. `isa` as in Options; `threads` > 1
// shares one process-wide set of threads. Error(kInput), Error(kUnavailable) as for Refiner.
void decode(const HeatmapView& heatmaps, Codec codec, float temperature, float threshold, const Output& out,
            int threads = 1, std::optional<Isa> isa = std::nullopt);

// The same with the codecs that start from the largest pixel. blur: side of the blur of kDark and kUdp, odd, 9 to 63:
// 11 for labels of sigma 2, 17 for sigma 3. A map with nothing above 0 gives joint (NaN, NaN) and confidence 0 as well.
void decode_peaks(const HeatmapView& heatmaps, PeakCodec codec, int blur, float threshold, const Output& out,
                  int threads = 1, std::optional<Isa> isa = std::nullopt);

// SimCC vectors [B][N][bins], as views of height 1, to joints in crop pixels: the largest bin of each axis over
// split_ratio. A joint is (NaN, NaN) with confidence 0 where the score is not above 0 or a vector holds NaN or +inf.
void decode_simcc(const HeatmapView& x, const HeatmapView& y, float split_ratio, SimccScore score, float threshold,
                  const Output& out, int threads = 1, std::optional<Isa> isa = std::nullopt);

// The fastest rate of fused multiply-adds on one core within `seconds` (0..60), in floating-point operations a second,
// on the calling thread: the yardstick of benchmarks. `isa` as in Options. Error(kInput), Error(kUnavailable).
double measure_peak_flops(Precision precision, double seconds, std::optional<Isa> isa = std::nullopt);

struct BuildInfo {
  std::string version;                             // of the library
  std::string compiler;                            // "GNU 12.2.0"
  std::vector<Isa> compiled_isas, available_isas;  // in this build; of those, on this processor
  Isa selected_isa = Isa::kGeneric;                // what an empty Options::isa means now
  bool bf16 = false;                               // Precision::kBfloat16 is to be had
  bool cuda = false;                               // built with PORT_CUDA
};

// Error(kUnavailable) if PORT_FORCE_ISA names an instruction set that is unknown or not to be had.
BuildInfo build_info();

struct CudaDevice {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
};

struct CudaInfo {
  bool compiled = false;            // this build has CUDA code
  std::vector<CudaDevice> devices;  // empty: no driver, no GPU, or not compiled
  std::string detail;               // one line for people: what there is, or what is missing and what to do
};

// Never throws for want of a driver or a GPU.
CudaInfo cuda_info();

}  // namespace port
