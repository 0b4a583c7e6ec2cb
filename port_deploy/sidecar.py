# SPDX-License-Identifier: Apache-2.0
"""The sidecar of an exported artefact: ``hand21.onnx`` + ``hand21.onnx.json``.

Artefacts keep their own format pure (a prefix inside an engine breaks its vendor's tools); everything that a backend
must know before it opens one stands beside it, tied to it by size and SHA-256. The hash guards against mix-ups and
damage, not against malice: load artefacts only from where you would run a program from.
May use: config, errors, files. Test: tests/test_sidecar.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from port_deploy.config import ModelSpec
from port_deploy.errors import InputError, ModelFileError
from port_deploy.files import sha256, write_text

SIDECAR_VERSION = 1
"""Version of the sidecar's own fields; a reader refuses a higher one."""

MAX_SIDECAR_BYTES = 4 << 20

Kind = Literal["ts", "onnx", "engine", "pt2"]
InputKind = Literal["heatmaps", "joints"]
Precision = Literal["fp32", "fp16", "bf16"]

INPUTS: Mapping[InputKind, tuple[str, str, str]] = {
    "heatmaps": ("heatmaps", "affine", "threshold"),
    "joints": ("joints", "confidence", "threshold"),
}
"""Names of an artefact's inputs, in order."""

OUTPUTS: Mapping[InputKind, tuple[str, str, str]] = {
    "heatmaps": ("joints", "confidence", "mask"),
    "joints": ("joints_out", "confidence_out", "mask"),
}
"""Names of its outputs, in order. In a graph an output cannot share the name of an input."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine was built with; all of it must fit where it runs.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        version: Of that library.
        compute_capabilities: GPUs that it was built for (``["8.9"]``); empty where TensorRT-RTX chose its default set.
    """

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sidecar:
    """Everything about an artefact that stands beside it.

    Attributes:
        kind: Its suffix: ``ts`` (TorchScript), ``onnx``, ``engine`` (TensorRT), ``pt2`` (AOTInductor).
        file: Its file name.
        sha256: Hex digest of its bytes.
        size_bytes: Their number.
        spec: The model's full specification; ``spec.threshold`` is the default of the threshold input.
        input: ``heatmaps`` (the whole line) or ``joints`` (PORT with mask, frame and blend).
        precision: Of the encoder's matrix products; everything else is float32.
        heatmap_size: (H, W) that it takes; None where it takes any.
        batch: Smallest, best and largest B of an engine's profile; None where it takes any.
        tools: Versions of what wrote it, and the opset.
        engine: For an engine, what it was built with.
        platform: For machine code (pt2), what it was compiled for: ``machine`` and ``cpu``.
        verification: What port-export measured.
        golden: Inputs (as a seed) and the oracle's answers, for machines that have no oracle.
    """

    kind: Kind
    file: str
    sha256: str
    size_bytes: int
    spec: ModelSpec
    input: InputKind
    precision: Precision
    heatmap_size: tuple[int, int] | None = None
    batch: tuple[int, int, int] | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    engine: EngineInfo | None = None
    platform: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)
    golden: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        engine = self.engine
        return {
            "sidecar_version": SIDECAR_VERSION,
            "kind": self.kind,
            "file": self.file,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "input": self.input,
            "precision": self.precision,
            "threshold": self.spec.threshold,
            "inputs": self._tensors(INPUTS[self.input], False),
            "outputs": self._tensors(OUTPUTS[self.input], True),
            "heatmap_size": list(self.heatmap_size) if self.heatmap_size else None,
            "batch": dict(zip(("min", "opt", "max"), self.batch, strict=True)) if self.batch else None,
            "engine": engine
            and {
                "flavour": engine.flavour,
                "version": engine.version,
                "compute_capabilities": list(engine.compute_capabilities),
            },
            "platform": dict(self.platform),
            "tools": dict(self.tools),
            "verification": dict(self.verification),
            "golden": dict(self.golden) if self.golden is not None else None,
            "specification": self.spec.to_json(),
        }

    def _tensors(self, names: tuple[str, ...], outputs: bool) -> list[dict[str, Any]]:
        n = self.spec.joints
        height, width = self.heatmap_size or ("H", "W")
        shapes: dict[str, list[int | str]] = {
            "heatmaps": ["B", n, height, width],
            "affine": ["B", 2, 3],
            "joints": ["B", n, 2],
            "confidence": ["B", n],
            "mask": ["B", n],
            "threshold": [1],
        }
        return [
            {
                "name": name,
                "dtype": "bool" if outputs and name == "mask" else "float32",
                "shape": shapes[name.removesuffix("_out")],
            }
            for name in names
        ]

    @classmethod
    def from_json(cls, data: Any) -> Sidecar:
        """Read what `to_json` wrote.

        Raises:
            ModelFileError: It is no sidecar, is of a newer version, or a field has an unusable value.
        """
        if not isinstance(data, dict) or "sidecar_version" not in data:
            raise ModelFileError("expected a port_deploy sidecar with sidecar_version: export the model again")
        version = data["sidecar_version"]
        if version != SIDECAR_VERSION:
            raise ModelFileError(f"expected sidecar version {SIDECAR_VERSION}, got {version!r}: upgrade port-deploy")
        spec = ModelSpec.from_json(data.get("specification"))
        try:
            size, batch, engine = data["heatmap_size"], data["batch"], data["engine"]
            result = cls(
                kind=_one_of(data, "kind", get_args(Kind)),
                file=_text(data["file"]),
                sha256=_text(data["sha256"]),
                size_bytes=_count(data["size_bytes"]),
                spec=spec,
                input=_one_of(data, "input", get_args(InputKind)),
                precision=_one_of(data, "precision", get_args(Precision)),
                heatmap_size=None if size is None else (_count(size[0]), _count(size[1])),
                batch=None if batch is None else (_count(batch["min"]), _count(batch["opt"]), _count(batch["max"])),
                tools={str(k): _text(v) for k, v in data["tools"].items()},
                engine=None
                if engine is None
                else EngineInfo(
                    _one_of(engine, "flavour", ("tensorrt", "tensorrt-rtx")),
                    _text(engine["version"]),
                    tuple(_text(v) for v in engine["compute_capabilities"]),
                ),
                platform={str(k): _text(v) for k, v in data["platform"].items()},
                verification=dict(data["verification"]),
                golden=None if data["golden"] is None else dict(data["golden"]),
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"sidecar field is missing or unusable ({error}): export the model again") from error
        if result.kind == "engine" and (result.engine is None or result.batch is None):
            raise ModelFileError("the sidecar of an engine lacks engine or batch: export the model again")
        return result


def sidecar_path(artefact: str | Path) -> Path:
    """``hand21.onnx`` -> ``hand21.onnx.json``."""
    path = Path(artefact)
    return path.with_name(path.name + ".json")


def write_sidecar(artefact: str | Path, sidecar: Sidecar) -> Path:
    """Write the sidecar beside its artefact, whole or not at all; returns its path."""
    path = sidecar_path(artefact)
    write_text(path, json.dumps(sidecar.to_json(), indent=1, ensure_ascii=False) + "\n")
    return path


def read_sidecar(artefact: str | Path, kind: Kind) -> Sidecar:
    """Read an artefact's sidecar and check that the two belong together.

    Args:
        artefact: The artefact's path; its sidecar lies beside it.
        kind: What the caller can run.

    Raises:
        InputError: There is no such artefact.
        ModelFileError: The sidecar is missing, broken, of another kind, or of another file's bytes.
    """
    path, beside = Path(artefact), sidecar_path(artefact)
    if not path.is_file():
        raise InputError(f"no artefact {path}: write it with port-export")
    again = "copy both files, or export the model again with port-export"
    try:
        if beside.stat().st_size > MAX_SIDECAR_BYTES:
            raise ModelFileError(f"{beside} is larger than {MAX_SIDECAR_BYTES >> 20} MiB: not a sidecar; {again}")
        data = json.loads(beside.read_text("utf-8"))
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise ModelFileError(f"expected the sidecar {beside.name} beside {path}, found none: {again}") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {beside}: {error.strerror or error}: {again}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise ModelFileError(f"{beside} is not JSON ({error}): {again}") from error
    try:
        sidecar = Sidecar.from_json(data)
    except ModelFileError as error:
        raise ModelFileError(f"{beside}: {error}") from error
    if sidecar.kind != kind:
        raise ModelFileError(f"{beside}: expected an artefact of kind {kind!r}, got {sidecar.kind!r}: {again}")
    if size != sidecar.size_bytes or sha256(path) != sidecar.sha256:
        raise ModelFileError(
            f"{path} ({size} bytes) is not the file that {beside.name} describes "
            f"({sidecar.size_bytes} bytes, SHA-256 {sidecar.sha256[:12]}…): {again}"
        )
    return sidecar


def _one_of(data: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> Any:
    if data[key] not in choices:
        raise ValueError(f"{key} {data[key]!r} is none of {', '.join(choices)}")
    return data[key]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise ValueError(f"expected a whole number of at least 0, got {value!r}")
    return value
