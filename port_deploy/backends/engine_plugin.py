# SPDX-License-Identifier: Apache-2.0
"""The fused kernel as a classic TensorRT plugin (``IPluginV3``): for libraries older than ahead-of-time plugins.

The engine holds the model file; the layer gives it to the core's CudaRefiner and launches its kernel on TensorRT's
stream. Such an engine loads only where this package is, and where `register` has been called: `tensorrt_.load` does.
Inputs  heatmaps [B, N, H, W], affine [B, 2, 3], threshold [1]; or joints [B, N, 2], confidence [B, N], threshold [1];
        float32.
Outputs joints [B, N, 2], confidence [B, N] float32, mask [B, N] int32 (plugins have no boolean tensors); of a model
        with a variance std [B, N] float32, too.
May use: native (which imports `_core`), cuda_memory, weights, errors.
Test: tests/test_fused.py; on a GPU: tests/test_tensorrt_gpu.py.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from port_deploy.backends import cuda_memory, native
from port_deploy.weights import Model, model_from_bytes

NAME, VERSION, NAMESPACE = "PortLine", "1", "port"

# Per library: itself, its creator, which it does not keep, and its class of layers.
_known: dict[int, tuple[Any, Any, Any]] = {}
_lock = threading.Lock()


def register(library: Any) -> Any:
    """Make a library's plugin registry know the layer; the second time nothing happens. Returns the creator."""
    with _lock:
        if id(library) not in _known:
            plugin_class = _make_plugin_class(library)
            creator = _make_creator(library, plugin_class)
            library.get_plugin_registry().register_creator(creator, NAMESPACE)
            _known[id(library)] = (library, creator, plugin_class)
        return _known[id(library)][1]


def make_plugin(library: Any, model: Model, precision: str) -> Any:
    """The layer for a network that is being built."""
    register(library)
    return _known[id(library)][2](model.data, precision, model)


def _make_plugin_class(library: Any) -> Any:
    float32, int32 = library.DataType.FLOAT, library.DataType.INT32

    bases = (library.IPluginV3, library.IPluginV3OneCore, library.IPluginV3OneBuild, library.IPluginV3OneRuntime)

    class PortLine(*bases):  # type: ignore[misc]
        """What TensorRT calls; its own names."""

        def __init__(self, data: bytes, precision: str, model: Model) -> None:
            for base in bases:
                base.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.num_outputs = 4 if model.spec.config.variance else 3
            self.timing_cache_id = ""
            self.data, self.precision, self.model = data, precision, model
            self.refiner: Any = None

        def get_capability_interface(self, type: Any) -> Any:
            return self

        def get_output_data_types(self, input_types: Any) -> list[Any]:
            return [float32, float32, int32, float32][: self.num_outputs]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expr_builder: Any) -> list[Any]:
            batch, count = inputs[0][0], expr_builder.constant(self.model.spec.joints)
            joints = library.DimsExprs(3)
            joints[0], joints[1], joints[2] = batch, count, expr_builder.constant(2)
            shapes = [joints]
            for _ in range(1, self.num_outputs):
                rows = library.DimsExprs(2)
                rows[0], rows[1] = batch, count
                shapes.append(rows)
            return shapes

        def get_fields_to_serialize(self) -> Any:
            return library.PluginFieldCollection(
                [
                    library.PluginField("model", np.frombuffer(self.data, np.int8), library.PluginFieldType.INT8),
                    library.PluginField("precision", self.precision.encode(), library.PluginFieldType.CHAR),
                ]
            )

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            desc = in_out[pos].desc
            wanted = int32 if pos == num_inputs + 2 else float32
            return bool(desc.format == library.TensorFormat.LINEAR and desc.type == wanted)

        def configure_plugin(self, inp: Any, out: Any) -> None:
            pass

        def on_shape_change(self, inp: Any, out: Any) -> None:
            pass

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass

        def attach_to_context(self, context: Any) -> Any:
            if self.refiner is None:  # now: the first launch may be part of a graph that is being captured
                self.refiner = _refiner_for(self.data, self.precision)
            return self.clone()

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: Any, stream: int
        ) -> None:
            if self.refiner is None:
                self.refiner = _refiner_for(self.data, self.precision)
            first, second, threshold = inputs
            shape = tuple(input_desc[0].dims)
            out = (threshold, *outputs, *[0] * (4 - self.num_outputs))
            if len(shape) == 4:
                self.refiner.run_layer(first, shape, second, out, stream)
            else:
                self.refiner.refine_layer(first, second, shape[0], out, stream)

        def clone(self) -> Any:
            copy = PortLine(self.data, self.precision, self.model)
            copy.refiner = self.refiner
            return copy

    return PortLine


def _make_creator(library: Any, plugin_class: Any) -> Any:
    class PortLineCreator(library.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes the layer of an engine that is being loaded."""

        def __init__(self) -> None:
            library.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            kinds = library.PluginFieldType
            self.field_names = library.PluginFieldCollection(
                [
                    library.PluginField("model", np.array([], np.int8), kinds.INT8),
                    library.PluginField("precision", b"", kinds.CHAR),
                ]
            )

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            values = {field.name: bytes(np.asarray(field.data)) for field in fields}
            data = values["model"]
            return plugin_class(data, values["precision"].decode(), model_from_bytes(data, f"the layer {name}"))

    return PortLineCreator()


def _refiner_for(data: bytes, precision: str) -> Any:
    """The core's CudaRefiner on the device that the calling thread, TensorRT's, has current.

    Raises:
        BackendUnavailableError: No CUDA in this build, or the GPU lacks the precision.
    """
    module = native.core()
    try:
        return module.CudaRefiner(data, "the engine's layer", device=cuda_memory.current_device(), precision=precision)
    except module.Error as error:
        raise native.translate(error) from None
