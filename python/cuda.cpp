// SPDX-License-Identifier: Apache-2.0
// csrc/include/port/cuda.hpp for Python. Arrays on the device come as addresses (an int each; 0: none), since
// port_deploy/device_arrays.py has read and checked what the caller's library says of them; arrays in host memory come
// as NumPy's and are checked here. Nothing waits for the GPU but what takes host memory. Test: tests/test_cuda.py.
#include "cuda.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "host_array.h"
#include "port/cuda.hpp"
#include "port/engine_layer.hpp"

namespace port::python {
namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float16") return DType::kFloat16;
  if (name == "bfloat16") return DType::kBfloat16;
  input_error("unknown dtype '" + name + "' of heatmaps: use float32, float16, bfloat16");
}

// [B, N, H, W]; strides of B, N and H in elements.
HeatmapView device_maps(Address data, const std::string& dtype, const std::array<std::int64_t, 4>& shape,
                        const std::array<std::int64_t, 3>& strides) {
  for (int i = 1; i < 4; ++i) {
    if (shape[i] < 0 || shape[i] > 4096) input_error("expected heatmap axes from 1 to 4096");
  }
  HeatmapView view;
  view.data = at<const void>(data);
  view.dtype = parse_dtype(dtype);
  view.batch = shape[0];
  view.joints = static_cast<int>(shape[1]);
  view.height = static_cast<int>(shape[2]);
  view.width = static_cast<int>(shape[3]);
  view.stride_b = strides[0];
  view.stride_n = strides[1];
  view.stride_h = strides[2];
  return view;
}

// Joints, confidence, mask, std.
Output device_output(const std::array<Address, 4>& out) {
  return {at<float>(out[0]), at<float>(out[1]), at<std::uint8_t>(out[2]), at<float>(out[3])};
}

// Joints, confidence, mask.
Output decode_output(const std::array<Address, 3>& out) {
  return {at<float>(out[0]), at<float>(out[1]), at<std::uint8_t>(out[2])};
}

// Threshold, joints, confidence, mask, std.
CudaLayerOutput layer_output(const std::array<Address, 5>& out) {
  return {at<const float>(out[0]), at<float>(out[1]), at<float>(out[2]), at<std::int32_t>(out[3]), at<float>(out[4])};
}

std::shared_ptr<const Model> read_model(const py::buffer& data, const std::string& source) {
  const py::buffer_info bytes = data.request();
  if (bytes.ndim != 1 || bytes.itemsize != 1 || (bytes.size > 0 && bytes.strides[0] != 1)) {
    input_error("expected the bytes of a model file: pass a bytes object");
  }
  const py::gil_scoped_release released;
  return Model::from_buffer(bytes.ptr, static_cast<std::size_t>(bytes.size), source);
}

py::bytes as_bytes(const std::vector<unsigned char>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

py::dict engine_layer(const py::buffer& data, const std::string& source, const std::string& precision, int height,
                      int width) {
  const auto model = read_model(data, source);
  const EngineLayer layer = make_engine_layer(*model, {precision_from_string(precision), height, width});
  py::dict out;
  out["columns"] = layer.columns;
  out["threads"] = layer.threads;
  out["shared_bytes"] = layer.shared_bytes;
  out["state_words"] = layer.state_words;
  out["std"] = layer.std;
  out["weights"] = as_bytes(layer.weights);
  out["constants"] = as_bytes(layer.constants);
  return out;
}

// A refiner and its way from host memory, which it outlives.
class Gpu {
 public:
  Gpu(const py::buffer& data, const std::string& source, int device, const std::string& precision,
      const std::optional<std::string>& variant) {
    const auto model = read_model(data, source);
    CudaOptions options;
    options.device = device;
    options.precision = precision_from_string(precision);
    if (variant) options.variant = cuda_variant_from_string(*variant);
    const py::gil_scoped_release released;
    refiner = std::make_unique<CudaRefiner>(model, options);
    host = std::make_unique<CudaFromHost>(*refiner);
  }

  void refine(Address joints, Address confidence, std::int64_t batch, float threshold,
              const std::array<Address, 4>& out, Address stream) const {
    const py::gil_scoped_release released;
    refiner->refine(at<const float>(joints), at<const float>(confidence), batch, threshold, device_output(out),
                    at<CUstream_st>(stream));
  }

  void run(Address maps, const std::string& dtype, const std::array<std::int64_t, 4>& shape,
           const std::array<std::int64_t, 3>& strides, Address affine, float threshold,
           const std::array<Address, 4>& out, Address stream) const {
    const HeatmapView view = device_maps(maps, dtype, shape, strides);
    const py::gil_scoped_release released;
    refiner->run(view, at<const float>(affine), threshold, device_output(out), at<CUstream_st>(stream));
  }

  void refine_layer(Address joints, Address confidence, std::int64_t batch, const std::array<Address, 5>& out,
                    Address stream) const {
    const py::gil_scoped_release released;
    refiner->refine(at<const float>(joints), at<const float>(confidence), batch, layer_output(out),
                    at<CUstream_st>(stream));
  }

  void run_layer(Address maps, const std::array<std::int64_t, 4>& shape, Address affine,
                 const std::array<Address, 5>& out, Address stream) const {
    const HeatmapView view =
        device_maps(maps, "float32", shape, {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3]});
    const py::gil_scoped_release released;
    refiner->run(view, at<const float>(affine), layer_output(out), at<CUstream_st>(stream));
  }

  void refine_host(const py::array& joints, const py::array& confidence, float threshold, const py::array& out_joints,
                   const py::array& out_confidence, const py::array& out_mask,
                   const std::optional<py::array>& out_std) const {
    const py::ssize_t batch = joints.ndim() > 0 ? joints.shape(0) : 0;
    const py::ssize_t count = refiner->model().joints();
    const auto* points = static_cast<const float*>(dense(joints, "joints", 'f', 4, {batch, count, 2}, false));
    const auto* scores = static_cast<const float*>(dense(confidence, "confidence", 'f', 4, {batch, count}, false));
    Output out = output(out_joints, out_confidence, out_mask, batch, count);
    if (out_std) add_std(*out_std, out_joints, out_confidence, out_mask, batch, count, &out);
    const py::gil_scoped_release released;
    host->refine(points, scores, batch, threshold, out);
  }

  void run_host(const py::array& heatmaps, const std::optional<py::array>& affine, float threshold,
                const py::array& out_joints, const py::array& out_confidence, const py::array& out_mask,
                const std::optional<py::array>& out_std) const {
    const HeatmapView view = heatmap_view(heatmaps);
    Output out = output(out_joints, out_confidence, out_mask, view.batch, view.joints);
    if (out_std) add_std(*out_std, out_joints, out_confidence, out_mask, view.batch, view.joints, &out);
    const float* matrix = nullptr;
    if (affine) matrix = static_cast<const float*>(dense(*affine, "affine", 'f', 4, {view.batch, 2, 3}, false));
    const py::gil_scoped_release released;
    host->run(view, matrix, threshold, out);
  }

  std::unique_ptr<CudaRefiner> refiner;
  std::unique_ptr<CudaFromHost> host;
};

void decode_on_device(Address maps, const std::string& dtype, const std::array<std::int64_t, 4>& shape,
                      const std::array<std::int64_t, 3>& strides, const std::string& codec, float temperature,
                      float threshold, const std::array<Address, 3>& out, int device, Address stream) {
  const HeatmapView view = device_maps(maps, dtype, shape, strides);
  const Codec parsed = codec_from_string(codec);
  const py::gil_scoped_release released;
  cuda_decode(view, parsed, temperature, threshold, decode_output(out), device, at<CUstream_st>(stream));
}

void decode_peaks_on_device(Address maps, const std::string& dtype, const std::array<std::int64_t, 4>& shape,
                            const std::array<std::int64_t, 3>& strides, const std::string& codec, int blur,
                            float threshold, const std::array<Address, 3>& out, int device, Address stream) {
  const HeatmapView view = device_maps(maps, dtype, shape, strides);
  const PeakCodec parsed = peak_codec_from_string(codec);
  const py::gil_scoped_release released;
  cuda_decode_peaks(view, parsed, blur, threshold, decode_output(out), device, at<CUstream_st>(stream));
}

// Address, dtype, shape [B, N, 1, bins] and strides of an axis.
using Vectors = std::tuple<Address, std::string, std::array<std::int64_t, 4>, std::array<std::int64_t, 3>>;

void decode_simcc_on_device(const Vectors& x, const Vectors& y, float split_ratio, const std::string& score,
                            float threshold, const std::array<Address, 3>& out, int device, Address stream) {
  const HeatmapView along_x = std::apply(device_maps, x), along_y = std::apply(device_maps, y);
  const SimccScore rule = simcc_score_from_string(score);
  const py::gil_scoped_release released;
  cuda_decode_simcc(along_x, along_y, split_ratio, rule, threshold, decode_output(out), device,
                    at<CUstream_st>(stream));
}

}  // namespace

void bind_cuda(py::module_& m) {
  py::class_<Gpu>(m, "CudaRefiner")
      .def(
          py::init<const py::buffer&, const std::string&, int, const std::string&, const std::optional<std::string>&>(),
          py::arg("data"), py::arg("source"), py::kw_only(), py::arg("device") = 0, py::arg("precision") = "fp16",
          py::arg("variant") = py::none())
      .def("refine", &Gpu::refine, py::arg("joints"), py::arg("confidence"), py::arg("batch"), py::arg("threshold"),
           py::arg("out"), py::arg("stream"))
      .def("run", &Gpu::run, py::arg("maps"), py::arg("dtype"), py::arg("shape"), py::arg("strides"), py::arg("affine"),
           py::arg("threshold"), py::arg("out"), py::arg("stream"))
      .def("refine_layer", &Gpu::refine_layer, py::arg("joints"), py::arg("confidence"), py::arg("batch"),
           py::arg("out"), py::arg("stream"))
      .def("run_layer", &Gpu::run_layer, py::arg("maps"), py::arg("shape"), py::arg("affine"), py::arg("out"),
           py::arg("stream"))
      .def("refine_host", &Gpu::refine_host, py::arg("joints"), py::arg("confidence"), py::arg("threshold"),
           py::arg("out_joints"), py::arg("out_confidence"), py::arg("out_mask"), py::arg("out_std") = py::none())
      .def("run_host", &Gpu::run_host, py::arg("heatmaps"), py::arg("affine").none(true), py::arg("threshold"),
           py::arg("out_joints"), py::arg("out_confidence"), py::arg("out_mask"), py::arg("out_std") = py::none())
      .def("variant", [](const Gpu& gpu, std::int64_t batch) { return to_string(gpu.refiner->variant(batch)); })
      .def_property_readonly("device", [](const Gpu& gpu) { return gpu.refiner->device(); })
      .def_property_readonly("weight_bytes", [](const Gpu& gpu) { return gpu.refiner->weight_bytes(); })
      .def_property_readonly("description", [](const Gpu& gpu) { return gpu.refiner->description(); });
  m.def("engine_layer", &engine_layer, py::arg("data"), py::arg("source"), py::arg("precision"), py::arg("height") = 0,
        py::arg("width") = 0);
  m.def("decode_on_device", &decode_on_device, py::arg("maps"), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
        py::arg("codec"), py::arg("temperature"), py::arg("threshold"), py::arg("out"), py::arg("device"),
        py::arg("stream"));
  m.def("decode_peaks_on_device", &decode_peaks_on_device, py::arg("maps"), py::arg("dtype"), py::arg("shape"),
        py::arg("strides"), py::arg("codec"), py::arg("blur"), py::arg("threshold"), py::arg("out"), py::arg("device"),
        py::arg("stream"));
  m.def("decode_simcc_on_device", &decode_simcc_on_device, py::arg("simcc_x"), py::arg("simcc_y"),
        py::arg("split_ratio"), py::arg("score"), py::arg("threshold"), py::arg("out"), py::arg("device"),
        py::arg("stream"));
}

}  // namespace port::python
