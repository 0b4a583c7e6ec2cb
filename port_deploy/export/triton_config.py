# SPDX-License-Identifier: Apache-2.0
"""``config.pbtxt`` of a Triton Inference Server model: what is in it, and protobuf's text format.

Test: tests/test_triton.py reads it with Triton's own schema. May use: sidecar, errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from port_deploy.errors import InputError
from port_deploy.sidecar import Sidecar

TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL"}

BACKENDS = ("auto", "tensorrt", "onnxruntime")


@dataclass(frozen=True)
class TritonOptions:
    """How a model is served.

    Attributes:
        backend: ``tensorrt`` (an engine for the GPU that it is built on), ``onnxruntime``, or ``auto``: TensorRT where
            it can build here, else ONNX Runtime.
        instances: Copies of the model per GPU (or on the CPU) that run at the same time.
        kind: ``gpu`` or ``cpu``.
        queue_delay_us: How long a request may wait for others to share a batch with, microseconds.
    """

    backend: str = "auto"
    instances: int = 1
    kind: str = "gpu"
    queue_delay_us: int = 200

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"unknown Triton backend {self.backend!r}: use one of {', '.join(BACKENDS)}")
        if self.kind not in ("gpu", "cpu"):
            raise InputError(f"unknown kind of instance {self.kind!r}: use gpu or cpu")
        if self.kind == "cpu" and self.backend == "tensorrt":
            raise InputError("TensorRT engines run on a GPU: serve on the CPU with --triton-backend onnxruntime")
        if not 1 <= self.instances <= 64:
            raise InputError(f"expected 1 to 64 instances, got {self.instances}")
        if not 0 <= self.queue_delay_us <= 10_000_000:
            raise InputError(f"expected a queue delay of 0 to 10,000,000 µs, got {self.queue_delay_us}")


@dataclass(frozen=True)
class Enum:
    """A name that stands without quotes in the text format."""

    name: str


def tensors(side: Sidecar, outputs: bool, size: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Name, type and dims (without the batch) of what a request carries; δ is a constant of the served model."""
    result = []
    for tensor in side.to_json()["outputs" if outputs else "inputs"]:
        if tensor["name"] == "threshold":
            continue
        sizes = {"H": size[0] if size else -1, "W": size[1] if size else -1}
        dims = [sizes.get(d, d) for d in tensor["shape"][1:]]
        result.append({"name": tensor["name"], "data_type": Enum(TYPES[tensor["dtype"]]), "dims": dims})
    return result


def make_config(
    name: str,
    side: Sidecar,
    backend: str,
    batch: tuple[int, int, int],
    size: tuple[int, int] | None,
    options: TritonOptions,
) -> dict[str, Any]:
    """The model's configuration as plain values, in the order in which it is written.

    Args:
        name: The model's, and its folder's.
        side: Sidecar of the ONNX that is served, or that the engine was built from.
        backend: ``tensorrt`` or ``onnxruntime``.
        batch: Smallest, best and largest B.
        size: (H, W) of heatmaps; None where any will do.
        options: How it is served.
    """
    inputs = tensors(side, False, size)
    warm = [_warm_up(f"batch of {b}", b, tensors(side, False, size or (64, 64))) for b in dict.fromkeys(batch[:2])]
    config: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "default_model_filename": "model.plan" if backend == "tensorrt" else "model.onnx",
        "max_batch_size": batch[2],
        "input": inputs,
        "output": tensors(side, True, size),
        "dynamic_batching": {
            "preferred_batch_size": [batch[1]],
            "max_queue_delay_microseconds": options.queue_delay_us,
        },
        "instance_group": [{"count": options.instances, "kind": Enum(f"KIND_{options.kind.upper()}")}],
        "version_policy": {"latest": {"num_versions": 1}},
    }
    if backend == "tensorrt":
        config["optimization"] = {
            "cuda": {"graphs": True, "graph_spec": [_graph(b, inputs) for b in sorted({*batch[:2]})]}
        }
    config["model_warmup"] = warm
    facts = {
        "threshold": f"{side.spec.threshold:g}",
        "skeleton": side.spec.skeleton.name,
        "joints": ",".join(side.spec.skeleton.names),
        "onnx_sha256": side.sha256,
    }
    config["parameters"] = [{"key": k, "value": {"string_value": v}} for k, v in facts.items()]
    return config


def _warm_up(name: str, batch: int, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "batch_size": batch,
        "inputs": [
            {"key": i["name"], "value": {"data_type": i["data_type"], "dims": i["dims"], "zero_data": True}}
            for i in inputs
        ],
    }


def _graph(batch: int, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"batch_size": batch, "input": [{"key": i["name"], "value": {"dim": i["dims"]}} for i in inputs]}


def to_pbtxt(config: Mapping[str, Any]) -> str:
    """Protobuf's text format of plain values: mappings are messages, lists are repeated fields."""
    return "".join(_field(name, value, "") for name, value in config.items())


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        inside = "".join(_field(n, v, indent + "  ") for n, v in value.items())
        return f"{indent}{name} {{\n{inside}{indent}}}\n"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and isinstance(value[0], Mapping):
            return "".join(_field(name, v, indent) for v in value)
        return f"{indent}{name}: [{', '.join(map(_scalar, value))}]\n"
    return f"{indent}{name}: {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
