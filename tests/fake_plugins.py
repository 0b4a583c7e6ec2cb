# SPDX-License-Identifier: Apache-2.0
"""Plugins for the stand-in of fake_tensorrt.py: a network that keeps its layers, ``tensorrt.plugin``, ``IPluginV3``.

The checks are those of NVIDIA's own Python files of ``tensorrt.plugin`` (10.9.0, 10.16.0, 11.4.0 agree): annotations
must be classes, arguments in the order inputs, outputs, tactic, four answers of fixed types, whole numbers of 32 bits.
`launch` says what TensorRT would launch for a batch. What a GPU does with it, tests marked ``cuda`` say.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_tensorrt import fake_tensorrt

TYPES = SimpleNamespace(FLOAT="float32", INT32="int32", BOOL="bool")


class Size:
    """A number that depends on the batch; ``at(b)`` is its value."""

    def __init__(self, value: Any = None) -> None:
        assert isinstance(value, (int, Size)) or callable(value), value
        self.at: Callable[[int], int] = value.at if isinstance(value, Size) else value if callable(value) else self._of
        self._value = value

    def _of(self, batch: int) -> int:
        return int(self._value)


class SymInt32(Size):
    pass


class TensorDesc:
    def __init__(self, shape_expr: tuple[Size, ...], dtype: str) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype


class SymIntExprs(list[Any]):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)

    def __setitem__(self, index: Any, value: Any) -> None:
        assert isinstance(value, SymInt32), "extra arguments are SymInt32"
        super().__setitem__(index, value)


class KernelLaunchParams:
    def __init__(self) -> None:
        for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z"):
            self.__dict__[name] = SymInt32(1)
        self.__dict__["shared_mem"] = SymInt32(0)

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.__dict__, f"KernelLaunchParams has no {name}"
        self.__dict__[name] = SymInt32(value)


def plugin_module() -> Any:
    """``tensorrt.plugin`` with nothing registered."""
    module = ModuleType("tensorrt.plugin")
    module.op = SimpleNamespace()  # type: ignore[attr-defined]
    definitions: dict[str, SimpleNamespace] = {}

    def register(plugin_id: str) -> Any:
        def decorate(function: Any) -> Any:
            namespace, _, name = plugin_id.partition("::")
            assert plugin_id not in definitions, f"{plugin_id} is already defined"
            assert namespace not in ("", "trt", "tensorrt", "std")
            assert "." not in plugin_id
            signature = inspect.signature(function)
            for parameter in signature.parameters.values():
                assert parameter.annotation is TensorDesc, f"{parameter} is no class TensorDesc"
                assert parameter.default is inspect.Parameter.empty
            assert typing.get_origin(signature.return_annotation) is tuple
            outputs = typing.get_args(signature.return_annotation)
            assert set(outputs) == {TensorDesc}
            made = SimpleNamespace(
                describe=function, tensors=list(signature.parameters), outputs=len(outputs), implement=None
            )
            definitions[plugin_id] = made
            if not hasattr(module.op, namespace):
                setattr(module.op, namespace, SimpleNamespace())

            def create(*tensors: Any) -> Any:
                assert len(tensors) == len(made.tensors)
                assert all(isinstance(t, Tensor) for t in tensors)
                return SimpleNamespace(definition=made, tensors=tensors)

            setattr(getattr(module.op, namespace), name, create)
            return function

        return decorate

    def aot_impl(plugin_id: str) -> Any:
        def decorate(function: Any) -> Any:
            made = definitions[plugin_id]
            signature = inspect.signature(function)
            assert list(signature.parameters) == [*made.tensors, "outputs", "tactic"]
            for name, parameter in signature.parameters.items():
                if name == "outputs":
                    assert typing.get_origin(parameter.annotation) is tuple
                else:
                    assert parameter.annotation is (int if name == "tactic" else TensorDesc)
            answers = typing.get_args(signature.return_annotation)
            assert answers == (str, str, KernelLaunchParams, SymIntExprs)
            made.implement = function
            return function

        return decorate

    def from_shape_expr(shape: tuple[Any, ...], dtype: str) -> TensorDesc:
        assert isinstance(shape, tuple)
        return TensorDesc(tuple(Size(n) for n in shape), dtype)

    for thing in (register, aot_impl, from_shape_expr, TensorDesc, SymInt32, SymIntExprs, KernelLaunchParams):
        setattr(module, thing.__name__, thing)
    return module


class Tensor:
    def __init__(self, shape: tuple[Any, ...], dtype: str, made_by: Any = None) -> None:
        self.shape, self.dtype, self.made_by, self.name = shape, dtype, made_by, ""


class Layer:
    def __init__(self, kind: str, outputs: list[Tensor], **more: Any) -> None:
        self.kind, self.outputs, self.name = kind, outputs, ""
        self.__dict__.update(more)
        for tensor in outputs:
            tensor.made_by = self

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


class Network:
    """Keeps what is added. A free batch is -1."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.layers: list[Layer] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        self.inputs.append(Tensor(shape, dtype))
        self.inputs[-1].name = name
        return self.inputs[-1]

    def mark_output(self, tensor: Tensor) -> None:
        self.outputs.append(tensor)

    def _add(self, layer: Layer) -> Layer:
        self.layers.append(layer)
        return layer

    def add_constant(self, shape: tuple[int, ...], values: Any) -> Layer:
        assert tuple(shape) == values.shape
        return self._add(Layer("constant", [Tensor(tuple(shape), str(values.dtype))], values=values))

    def add_gather(self, tensor: Tensor, indices: Tensor, axis: int) -> Layer:
        shape = (*tensor.shape[:axis], *indices.shape, *tensor.shape[axis + 1 :])
        return self._add(Layer("gather", [Tensor(shape, tensor.dtype)], of=tensor, indices=indices, axis=axis))

    def add_cast(self, tensor: Tensor, dtype: str) -> Layer:
        return self._add(Layer("cast", [Tensor(tensor.shape, dtype)], of=tensor))

    def add_plugin(self, call: Any, aot: bool = False) -> Layer:
        assert aot
        given = [_desc(t) for t in call.tensors]
        outputs = call.definition.describe(*given)
        tensors = [Tensor(_shape(d), d.dtype) for d in outputs]
        return self._add(Layer("plugin", tensors, call=call, given=given, described=outputs))

    def add_plugin_v3(self, inputs: list[Tensor], shape_inputs: list[Tensor], plugin: Any) -> Layer:
        assert shape_inputs == []
        types = plugin.get_output_data_types([t.dtype for t in inputs])
        shapes = plugin.get_output_shapes([DimsExprs(t.shape) for t in inputs], [], ExprBuilder())
        assert len(types) == len(shapes) == plugin.num_outputs
        descs = [SimpleNamespace(desc=SimpleNamespace(format="LINEAR", type=t.dtype)) for t in inputs]
        descs += [SimpleNamespace(desc=SimpleNamespace(format="LINEAR", type=t)) for t in types]
        assert all(plugin.supports_format_combination(i, descs, len(inputs)) for i in range(len(descs)))
        tensors = [Tensor(tuple(s), t) for s, t in zip(shapes, types, strict=True)]
        return self._add(Layer("plugin_v3", tensors, plugin=plugin, inputs=inputs))


def _desc(tensor: Tensor) -> TensorDesc:
    return TensorDesc(tuple(Size(n if n >= 0 else lambda batch: batch) for n in tensor.shape), tensor.dtype)


def _shape(desc: TensorDesc) -> tuple[int, ...]:
    one, two = ([size.at(b) for size in desc.shape_expr] for b in (1, 2))
    return tuple(a if a == b else -1 for a, b in zip(one, two, strict=True))


class DimsExprs(list[Any]):
    def __init__(self, of: Any) -> None:
        super().__init__([None] * of if isinstance(of, int) else of)


class ExprBuilder:
    def constant(self, value: int) -> int:
        return value


def launch(layer: Layer, batch: int) -> SimpleNamespace:
    """What TensorRT would launch: kernel, text, grid, block, shared memory, and the arguments in their order."""
    name, ptx, params, scalars = layer.call.definition.implement(*layer.given, tuple(layer.described), 0)
    assert isinstance(name, str)
    assert isinstance(ptx, str)
    assert type(params) is KernelLaunchParams
    assert type(scalars) is SymIntExprs
    sizes = {key: value.at(batch) for key, value in vars(params).items()}
    arguments = [*layer.call.tensors, *(s.at(batch) for s in scalars), *layer.outputs]
    return SimpleNamespace(name=name, ptx=ptx, arguments=arguments, **sizes)


class Registry:
    def __init__(self) -> None:
        self.creators: list[tuple[Any, str]] = []

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators.append((creator, namespace))
        return True


class PluginField:
    def __init__(self, name: str, data: Any, kind: str) -> None:
        self.name, self.type = name, kind
        self.data = np.frombuffer(data, np.int8) if isinstance(data, bytes) else data


def library_with_plugins(version: str = "10.9.0", monkeypatch: Any = None) -> Any:
    """The stand-in of a version: ahead-of-time plugins from 10.9 on, classic ones in all."""
    library = fake_tensorrt(version)
    registry = Registry()
    library.DataType, library.float32, library.bool = TYPES, TYPES.FLOAT, TYPES.BOOL
    library.TensorFormat = SimpleNamespace(LINEAR="LINEAR")
    library.PluginFieldType = SimpleNamespace(INT8="INT8", CHAR="CHAR")
    library.PluginField, library.PluginFieldCollection, library.DimsExprs = PluginField, list, DimsExprs
    library.get_plugin_registry = lambda: registry
    for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One"):
        setattr(library, name, type(name, (), {"__init__": lambda self: None}))
    library.networks = []

    def create_network(builder: Any, flags: int) -> Network:
        library.log.append(("network", flags))
        library.networks.append(Network())
        return library.networks[-1]  # type: ignore[no-any-return]

    library.Builder.create_network = create_network
    if tuple(map(int, version.split(".")[:2])) >= (10, 9):
        library.QuickPluginCreationRequest = SimpleNamespace()
        monkeypatch.setitem(sys.modules, "tensorrt", library)
        monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin_module())
    return library
