// SPDX-License-Identifier: Apache-2.0
// The Python module port_deploy._core: csrc/include/port/port.hpp for NumPy arrays. Computes with the GIL released.
// Errors leave as _core.Error with args (message, "input" | "model_file" | "unavailable").
// Only port_deploy/backends/native.py imports it; port_deploy/_core.pyi declares it. Test: tests/test_core.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <memory>
#include <optional>
#include <string>

#include "cuda.h"
#include "decode_call.h"
#include "host_array.h"
#include "port/port.hpp"

namespace port::python {
namespace {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInput:
      return "input";
    case ErrorCode::kModelFile:
      return "model_file";
    case ErrorCode::kUnavailable:
      break;
  }
  return "unavailable";
}

std::optional<Isa> parse_isa(const std::optional<std::string>& name) {
  return name ? std::optional<Isa>(isa_from_string(*name)) : std::nullopt;
}

std::unique_ptr<Refiner> make_refiner(const py::buffer& data, const std::string& source, int threads,
                                      const std::optional<std::string>& isa, const std::string& precision) {
  const py::buffer_info bytes = data.request();
  if (bytes.ndim != 1 || bytes.itemsize != 1 || (bytes.size > 0 && bytes.strides[0] != 1)) {
    input_error("expected the bytes of a model file: pass a bytes object");
  }
  Options options;
  options.threads = threads;
  options.isa = parse_isa(isa);
  options.precision = precision_from_string(precision);
  const py::gil_scoped_release released;
  const auto model = Model::from_buffer(bytes.ptr, static_cast<std::size_t>(bytes.size), source);
  return std::make_unique<Refiner>(model, options);
}

void refine(const Refiner& refiner, const py::array& joints, const py::array& confidence, float threshold,
            const py::array& out_joints, const py::array& out_confidence, const py::array& out_mask,
            const std::optional<py::array>& out_std) {
  const py::ssize_t batch = joints.ndim() > 0 ? joints.shape(0) : 0;
  const py::ssize_t count = refiner.model().joints();
  const auto* points = static_cast<const float*>(dense(joints, "joints", 'f', 4, {batch, count, 2}, false));
  const auto* scores = static_cast<const float*>(dense(confidence, "confidence", 'f', 4, {batch, count}, false));
  Output out = output(out_joints, out_confidence, out_mask, batch, count);
  if (out_std) {
    add_std(*out_std, out_joints, out_confidence, out_mask, batch, count, &out);
    check_apart(*out_std, joints, "joints and out.std", false);
    check_apart(*out_std, confidence, "confidence and out.std", false);
  }
  check_apart(out_joints, joints, "joints and out.joints", true);
  check_apart(out_joints, confidence, "confidence and out.joints", false);
  check_apart(out_confidence, confidence, "confidence and out.confidence", true);
  check_apart(out_confidence, joints, "joints and out.confidence", false);
  check_apart(out_mask, joints, "joints and out.mask", false);
  check_apart(out_mask, confidence, "confidence and out.mask", false);
  const py::gil_scoped_release released;
  refiner.refine(points, scores, batch, threshold, out);
}

void run(const Refiner& refiner, const py::array& heatmaps, const std::optional<py::array>& affine, float threshold,
         const py::array& out_joints, const py::array& out_confidence, const py::array& out_mask,
         const std::optional<py::array>& out_std) {
  const HeatmapView view = heatmap_view(heatmaps);
  Output out = output(out_joints, out_confidence, out_mask, view.batch, view.joints);
  const float* matrix = nullptr;
  if (affine) matrix = static_cast<const float*>(dense(*affine, "affine", 'f', 4, {view.batch, 2, 3}, false));
  for (const py::array* written : {&out_joints, &out_confidence, &out_mask}) {
    check_apart(*written, heatmaps, "heatmaps and out", false);
    if (affine) check_apart(*written, *affine, "affine and out", false);
  }
  if (out_std) {
    add_std(*out_std, out_joints, out_confidence, out_mask, view.batch, view.joints, &out);
    check_apart(*out_std, heatmaps, "heatmaps and out", false);
    if (affine) check_apart(*out_std, *affine, "affine and out", false);
  }
  const py::gil_scoped_release released;
  refiner.run(view, matrix, threshold, out);
}

void decode_maps(const py::array& heatmaps, const std::string& codec, float temperature, float threshold,
                 const py::array& out_joints, const py::array& out_confidence, const py::array& out_mask, int threads,
                 const std::optional<std::string>& isa) {
  const HeatmapView view = heatmap_view(heatmaps);
  const Output out = output(out_joints, out_confidence, out_mask, view.batch, view.joints);
  for (const py::array* written : {&out_joints, &out_confidence, &out_mask}) {
    check_apart(*written, heatmaps, "heatmaps and out", false);
  }
  const Codec parsed = codec_from_string(codec);
  const std::optional<Isa> chosen = parse_isa(isa);
  const py::gil_scoped_release released;
  decode(view, parsed, temperature, threshold, out, threads, chosen);
}

void decode_peaks_of(const py::array& heatmaps, const std::string& codec, int blur, float threshold,
                     const py::array& out_joints, const py::array& out_confidence, const py::array& out_mask,
                     int threads, const std::optional<std::string>& isa) {
  const HeatmapView view = heatmap_view(heatmaps);
  const Output out = output(out_joints, out_confidence, out_mask, view.batch, view.joints);
  for (const py::array* written : {&out_joints, &out_confidence, &out_mask}) {
    check_apart(*written, heatmaps, "heatmaps and out", false);
  }
  const PeakCodec parsed = peak_codec_from_string(codec);
  const std::optional<Isa> chosen = parse_isa(isa);
  const py::gil_scoped_release released;
  decode_peaks(view, parsed, blur, threshold, out, threads, chosen);
}

void decode_simcc_of(const py::array& x, const py::array& y, float split_ratio, const std::string& score,
                     float threshold, const py::array& out_joints, const py::array& out_confidence,
                     const py::array& out_mask, int threads, const std::optional<std::string>& isa) {
  const HeatmapView along_x = heatmap_view(x), along_y = heatmap_view(y);
  const Output out = output(out_joints, out_confidence, out_mask, along_x.batch, along_x.joints);
  for (const py::array* written : {&out_joints, &out_confidence, &out_mask}) {
    check_apart(*written, x, "simcc_x and out", false);
    check_apart(*written, y, "simcc_y and out", false);
  }
  const SimccScore rule = simcc_score_from_string(score);
  const std::optional<Isa> chosen = parse_isa(isa);
  const py::gil_scoped_release released;
  decode_simcc(along_x, along_y, split_ratio, rule, threshold, out, threads, chosen);
}

py::list isa_names(const std::vector<Isa>& isas) {
  py::list names;
  for (const Isa isa : isas) names.append(to_string(isa));
  return names;
}

py::dict build() {
  const BuildInfo info = build_info();
  py::dict result;
  result["version"] = info.version;
  result["compiler"] = info.compiler;
  result["compiled_isas"] = isa_names(info.compiled_isas);
  result["available_isas"] = isa_names(info.available_isas);
  result["selected_isa"] = to_string(info.selected_isa);
  result["bf16"] = info.bf16;
  result["cuda"] = info.cuda;
  return result;
}

py::dict cuda() {
  const CudaInfo info = cuda_info();
  py::list devices;
  for (const CudaDevice& device : info.devices) {
    py::dict entry;
    entry["index"] = device.index;
    entry["name"] = device.name;
    entry["compute_capability"] = py::make_tuple(device.major, device.minor);
    devices.append(entry);
  }
  py::dict result;
  result["compiled"] = info.compiled;
  result["devices"] = devices;
  result["detail"] = info.detail;
  return result;
}

// What the core read in a model's bytes, for the test that both readers agree.
py::dict card(const Refiner& refiner) {
  const Model& model = refiner.model();
  py::dict result;
  result["name"] = model.name();
  result["skeleton"] = model.skeleton();
  result["joint_names"] = model.joint_names();
  result["threshold"] = model.threshold();
  result["codec"] = to_string(model.codec());
  result["temperature"] = model.temperature();
  result["frame"] = to_string(model.frame());
  result["refine"] = to_string(model.refine());
  result["min_visible"] = model.min_visible();
  result["max_masked"] = model.max_masked();
  result["fusion"] = model.fusion();
  result["confidence_divisor"] = model.confidence_divisor();
  result["variance"] = model.variance();
  result["std_scale"] = model.std_scale();
  result["parameter_count"] = model.parameter_count();
  return result;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of port_deploy.";

  // Leaked on purpose: errors may be raised until the interpreter is gone.
  static PyObject* error_type = PyErr_NewException("port_deploy._core.Error", PyExc_RuntimeError, nullptr);
  if (error_type == nullptr) throw py::error_already_set();
  m.attr("Error") = py::reinterpret_borrow<py::object>(error_type);
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PyErr_SetObject(error_type, py::make_tuple(error.what(), code_name(error.code())).ptr());
    }
  });

  py::class_<Refiner>(m, "Refiner")
      .def(py::init(&make_refiner), py::arg("data"), py::arg("source"), py::kw_only(), py::arg("threads") = 0,
           py::arg("isa") = py::none(), py::arg("precision") = "fp32")
      .def("refine", &refine, py::arg("joints"), py::arg("confidence"), py::arg("threshold"), py::arg("out_joints"),
           py::arg("out_confidence"), py::arg("out_mask"), py::arg("out_std") = py::none())
      .def("run", &run, py::arg("heatmaps"), py::arg("affine").none(true), py::arg("threshold"), py::arg("out_joints"),
           py::arg("out_confidence"), py::arg("out_mask"), py::arg("out_std") = py::none())
      .def_property_readonly("threads", &Refiner::threads)
      .def_property_readonly("isa", [](const Refiner& refiner) { return to_string(refiner.isa()); })
      .def_property_readonly("precision", [](const Refiner& refiner) { return to_string(refiner.precision()); })
      .def_property_readonly("weight_bytes", &Refiner::weight_bytes)
      .def_property_readonly("workspace_bytes", &Refiner::workspace_bytes)
      .def_property_readonly("card", &card);
  m.def("decode", &decode_maps, py::arg("heatmaps"), py::arg("codec"), py::arg("temperature"), py::arg("threshold"),
        py::arg("out_joints"), py::arg("out_confidence"), py::arg("out_mask"), py::kw_only(), py::arg("threads") = 1,
        py::arg("isa") = py::none());
  m.def("decode_peaks", &decode_peaks_of, py::arg("heatmaps"), py::arg("codec"), py::arg("blur"), py::arg("threshold"),
        py::arg("out_joints"), py::arg("out_confidence"), py::arg("out_mask"), py::kw_only(), py::arg("threads") = 1,
        py::arg("isa") = py::none());
  m.def("decode_simcc", &decode_simcc_of, py::arg("simcc_x"), py::arg("simcc_y"), py::arg("split_ratio"),
        py::arg("score"), py::arg("threshold"), py::arg("out_joints"), py::arg("out_confidence"), py::arg("out_mask"),
        py::kw_only(), py::arg("threads") = 1, py::arg("isa") = py::none());
  static PyMethodDef try_decode_method = {
      "try_decode", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&try_decode)), METH_FASTCALL,
      "The decode, if every argument is exactly what it takes; whether it was done."};
  m.attr("try_decode") = py::reinterpret_steal<py::object>(PyCFunction_New(&try_decode_method, nullptr));
  m.def(
      "measure_peak_flops",
      [](const std::string& precision, double seconds, const std::optional<std::string>& isa) {
        const Precision chosen = precision_from_string(precision);
        const std::optional<Isa> forced = parse_isa(isa);
        const py::gil_scoped_release released;
        return measure_peak_flops(chosen, seconds, forced);
      },
      py::arg("precision") = "fp32", py::arg("seconds") = 0.1, py::kw_only(), py::arg("isa") = py::none());
  m.def("build_info", &build);
  m.def("cuda_info", &cuda);
  bind_cuda(m);
}

}  // namespace port::python
