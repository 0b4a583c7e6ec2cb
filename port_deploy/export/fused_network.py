# SPDX-License-Identifier: Apache-2.0
"""The network of a fused engine: inputs, one plugin layer that is the whole line, outputs. Nothing of ONNX.

Ahead of time (TensorRT 10.9 and later): the layer is the kernel's PTX and a launch, written into the plan, which
`trtexec`, Triton and DeepStream then load with nothing of ours installed. As a classic plugin (before 10.9, or for a
network that needs more shared memory than a layer may have): the layer is `backends.engine_plugin`, which must be there
where the engine is loaded. TensorRT-RTX has no plugin layers.
Names, shapes and types of inputs and outputs are those of the engine that is built from the ONNX. Plugins have no
boolean tensors, so the mask is int32 inside and cast.
May use: fused_kernel, backends, sidecar, weights, errors.
Test: tests/test_fused.py; on a GPU: tests/test_tensorrt_gpu.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from port_deploy.backends import engine_plugin, native_cuda, tensorrt_
from port_deploy.errors import BackendUnavailableError, ExportError
from port_deploy.export.fused_kernel import ENTRY, FusedKernel, make_kernel
from port_deploy.sidecar import INPUTS, InputKind, Precision, outputs_of
from port_deploy.weights import Model

Way = Literal["aot", "ipluginv3"]

AOT_SINCE = "10.9"


@dataclass(frozen=True)
class Fused:
    """What stands in a fused engine's network.

    Attributes:
        model: Specification and the file's bytes.
        input: ``heatmaps`` or ``joints``.
        precision: Of the encoder's matrix products.
        size: (H, W) of heatmaps; None for joints.
        way: ``aot`` or ``ipluginv3``.
        reason: Why that way.
        kernel: With ``aot``, the kernel.
    """

    model: Model
    input: InputKind
    precision: Precision
    size: tuple[int, int] | None
    way: Way
    reason: str
    kernel: FusedKernel | None = None

    def to_key(self) -> str:
        """Hex digest over everything of it that makes another engine."""
        digest = hashlib.sha256(repr((self.way, self.input, self.precision, self.size)).encode())
        for part in (self.kernel.ptx.encode(), self.kernel.weights) if self.kernel else (self.model.data,):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()


def plan_fused(
    library: Any, model: Model, kind: InputKind, precision: Precision, size: tuple[int, int], capability: str
) -> Fused:
    """How the fused kernel gets into an engine of a library.

    Args:
        library: The module ``tensorrt``.
        model: Specification and the file's bytes.
        kind: ``heatmaps`` or ``joints``.
        precision: Of the encoder's matrix products.
        size: (H, W) of heatmaps.
        capability: Compute capability of the GPU that the engine is for.

    Raises:
        BackendUnavailableError: This build has no CUDA, or no way fits.
        InputError: The GPU lacks the precision.
    """
    given = size if kind == "heatmaps" else None
    kernel, reason = None, f"tensorrt {library.__version__} has no ahead-of-time plugins ({AOT_SINCE} has)"
    if hasattr(library, "QuickPluginCreationRequest"):
        try:
            kernel = make_kernel(model, precision, given, capability)
        except BackendUnavailableError as error:
            if "48 KB" not in str(error):
                raise
            reason = str(error)
    if kernel is not None:
        reason = f"tensorrt {library.__version__} has ahead-of-time plugins: the plan holds the kernel"
        return Fused(model, kind, precision, given, "aot", reason, kernel)
    state = native_cuda.availability()
    if not state.available:
        raise BackendUnavailableError(f"--fuse as a classic plugin ({reason}) needs {state.detail}: {state.remedy}")
    return Fused(model, kind, precision, given, "ipluginv3", reason)


def build_network(library: Any, builder: Any, fused: Fused) -> tuple[Any, list[Any]]:
    """A strongly typed network with the one layer.

    Returns:
        The network, and what must live until the engine is built.

    Raises:
        ExportError: The library refuses the layer.
    """
    strongly_typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    count = fused.model.spec.joints
    shapes = {
        "heatmaps": (-1, count, *(fused.size or ())),
        "affine": (-1, 2, 3),
        "joints": (-1, count, 2),
        "confidence": (-1, count),
        "threshold": (1,),
    }
    inputs = [network.add_input(name, library.float32, shapes[name]) for name in INPUTS[fused.input]]
    keep: list[Any] = []
    layer = (_add_aot if fused.kernel else _add_classic)(library, network, fused, inputs, keep)
    if layer is None:
        raise ExportError(f"tensorrt {library.__version__} refuses the fused layer: leave out --fuse")
    layer.name = "port_line"
    state = layer.get_output(2)
    if fused.kernel and fused.kernel.state_words != count:
        columns = np.arange(count, dtype=np.int32)  # the mask; what follows is the kernel's scratch memory
        keep.append(columns)
        state = network.add_gather(state, network.add_constant((count,), columns).get_output(0), 1).get_output(0)
    mask = network.add_cast(state, library.bool).get_output(0)
    tensors = [layer.get_output(0), layer.get_output(1), mask]
    if fused.model.spec.config.variance:
        tensors.append(layer.get_output(3))
    for name, tensor in zip(outputs_of(fused.input, fused.model.spec), tensors, strict=True):
        tensor.name = name
        network.mark_output(tensor)
    return network, keep


def _add_aot(library: Any, network: Any, fused: Fused, inputs: Sequence[Any], keep: list[Any]) -> Any:
    kernel = fused.kernel
    assert kernel is not None
    weights = np.frombuffer(kernel.weights, np.int32)
    keep.append(weights)
    packed = network.add_constant(weights.shape, weights).get_output(0)
    operator = _register(library, fused.model.spec.joints, kernel)
    return network.add_plugin(operator(*inputs, packed), aot=True)


def _register(library: Any, count: int, kernel: FusedKernel) -> Callable[..., Any]:
    """The kernel as an operator of ``tensorrt.plugin``; registered once per process."""
    plugin = tensorrt_.import_plugin_module(library)
    what = f"{count} {kernel.shared_bytes} {kernel.state_words} {kernel.std}\n{kernel.ptx}"
    digest = hashlib.sha256(what.encode()).hexdigest()
    name = f"line_{digest[:24]}"
    namespace = getattr(plugin.op, "port", None)
    if namespace is not None and hasattr(namespace, name):
        return getattr(namespace, name)  # type: ignore[no-any-return]
    desc, types = plugin.TensorDesc, library.DataType

    def describe(first: Any, second: Any, threshold: Any, weights: Any) -> Any:
        batch = first.shape_expr[0]
        shapes = (
            plugin.from_shape_expr((batch, count, 2), types.FLOAT),
            plugin.from_shape_expr((batch, count), types.FLOAT),
            plugin.from_shape_expr((batch, kernel.state_words), types.INT32),
        )
        return (*shapes, plugin.from_shape_expr((batch, count), types.FLOAT)) if kernel.std else shapes

    def implement(first: Any, second: Any, threshold: Any, weights: Any, outputs: Any, tactic: int) -> Any:
        batch = first.shape_expr[0]
        launch = plugin.KernelLaunchParams()
        launch.grid_x = batch
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared_bytes
        scalars = plugin.SymIntExprs(1)  # between inputs and outputs
        scalars[0] = plugin.SymInt32(batch)
        return ENTRY, kernel.ptx, launch, scalars

    # The library reads annotations as classes, which this module has as text.
    tensors = dict.fromkeys(("first", "second", "threshold", "weights"), desc)
    outputs = (desc,) * (4 if kernel.std else 3)
    describe.__annotations__ = {**tensors, "return": tuple[outputs]}  # type: ignore[valid-type]
    implement.__annotations__ = {
        **tensors,
        "outputs": tuple[desc],  # type: ignore[valid-type]
        "tactic": int,
        "return": tuple[str, str, plugin.KernelLaunchParams, plugin.SymIntExprs],  # type: ignore[name-defined]
    }
    plugin.register(f"port::{name}")(describe)
    plugin.aot_impl(f"port::{name}")(implement)
    return getattr(plugin.op.port, name)  # type: ignore[no-any-return]


def _add_classic(library: Any, network: Any, fused: Fused, inputs: Sequence[Any], keep: list[Any]) -> Any:
    creator = engine_plugin.register(library)
    instance = engine_plugin.make_plugin(library, fused.model, fused.precision)
    keep += [creator, instance]
    return network.add_plugin_v3(list(inputs), [], instance)
