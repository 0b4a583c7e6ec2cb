# SPDX-License-Identifier: Apache-2.0
"""The sidecar of an exported artefact: ``hand21.onnx`` + ``hand21.onnx.json``.

Artefacts keep their own format pure (a prefix inside an engine breaks its vendor's tools); everything that a backend
must know before it opens one stands beside it, tied to it by size and SHA-256. The hash guards against mix-ups and
damage, not against malice: load artefacts only from where you would run a program from.
May use: config, detector_info, engine_info, json_fields, errors, files. Test: tests/test_sidecar.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from port_deploy.config import ModelSpec
from port_deploy.detector_info import DetectorInfo
from port_deploy.engine_info import EngineInfo
from port_deploy.errors import InputError, ModelFileError
from port_deploy.files import sha256, write_text
from port_deploy.json_fields import count, one_of, text

SIDECAR_VERSION = 1
"""Version of the sidecar's own fields; a reader refuses a higher one."""

MAX_SIDECAR_BYTES = 4 << 20

_AGAIN = "copy both files, or export the model again with port-export"

Kind = Literal["ts", "onnx", "engine", "pt2"]
InputKind = Literal["heatmaps", "joints", "image"]
Precision = Literal["fp32", "fp16", "bf16"]

INPUTS: Mapping[InputKind, tuple[str, str, str]] = {
    "heatmaps": ("heatmaps", "affine", "threshold"),
    "joints": ("joints", "confidence", "threshold"),
    "image": ("image", "affine", "threshold"),
}
"""Names of an artefact's inputs, in order."""

DEFAULTS: Mapping[InputKind, tuple[str, ...]] = {
    "heatmaps": ("threshold",),
    "joints": ("threshold",),
    "image": ("affine", "threshold"),
}
"""Inputs of an ONNX artefact that may be left out: initializers of the same name hold their defaults."""

OUTPUTS: Mapping[InputKind, tuple[str, str, str]] = {
    "heatmaps": ("joints", "confidence", "mask"),
    "joints": ("joints_out", "confidence_out", "mask"),
    "image": ("joints", "confidence", "mask"),
}
"""Names of its outputs, in order. In a graph an output cannot share the name of an input."""

STD = "std"
"""The output more that models with a variance have."""


def outputs_of(kind: InputKind, spec: ModelSpec) -> tuple[str, ...]:
    """Names of the outputs of an artefact of a model, in order: OUTPUTS, and STD where it has a variance."""
    return (*OUTPUTS[kind], STD) if spec.config.variance else OUTPUTS[kind]


@dataclass(frozen=True)
class Sidecar:
    """Everything about an artefact that stands beside it.

    Attributes:
        kind: Its suffix: ``ts`` (TorchScript), ``onnx``, ``engine`` (TensorRT), ``pt2`` (AOTInductor).
        file: Its file name.
        sha256: Hex digest of its bytes.
        size_bytes: Their number.
        spec: The model's full specification; ``spec.threshold`` is the default of the threshold input.
        input: ``heatmaps`` (the whole line), ``joints`` (PORT with mask, frame and blend) or ``image`` (a detector and
            the whole line).
        precision: Of the encoder's matrix products, and with fp16 of the detector; everything else is float32.
        heatmap_size: (H, W) that it takes; None where it takes any.
        batch: Smallest, best and largest B of an engine's profile; None where it takes any.
        tools: Versions of what wrote it, and the opset.
        engine: For an engine, what it was built with.
        platform: For machine code (pt2), what it was compiled for: ``machine`` and ``cpu``.
        verification: What port-export measured.
        golden: Inputs (as a seed) and the oracle's answers, for machines that have no oracle.
        detector: With input ``image``, what stands in front of PORT.
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
    detector: DetectorInfo | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
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
            "outputs": self._tensors(outputs_of(self.input, self.spec), True),
            "heatmap_size": list(self.heatmap_size) if self.heatmap_size else None,
            "batch": dict(zip(("min", "opt", "max"), self.batch, strict=True)) if self.batch else None,
            "engine": self.engine and self.engine.to_json(),
            "platform": dict(self.platform),
            "tools": dict(self.tools),
            "verification": dict(self.verification),
            "golden": dict(self.golden) if self.golden is not None else None,
            "detector": self.detector.to_json() if self.detector is not None else None,
            "specification": self.spec.to_json(),
        }

    def _tensors(self, names: Sequence[str], outputs: bool) -> list[dict[str, Any]]:
        n = self.spec.joints
        height, width = self.heatmap_size or ("H", "W")
        shapes: dict[str, list[int | str]] = {
            "heatmaps": ["B", n, height, width],
            "image": ["B", *(self.detector.image_shape if self.detector else ())],
            "affine": ["B", 2, 3],
            "joints": ["B", n, 2],
            "confidence": ["B", n],
            "mask": ["B", n],
            STD: ["B", n],
            "threshold": [1],
        }
        return [
            {
                "name": name,
                "dtype": "bool" if outputs and name == "mask" else self._dtype(name),
                "shape": shapes[name.removesuffix("_out")],
            }
            for name in names
        ]

    def _dtype(self, name: str) -> str:
        return self.detector.image_type if name == "image" and self.detector else "float32"

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
                kind=one_of(data, "kind", get_args(Kind)),
                file=text(data["file"]),
                sha256=text(data["sha256"]),
                size_bytes=count(data["size_bytes"]),
                spec=spec,
                input=one_of(data, "input", get_args(InputKind)),
                precision=one_of(data, "precision", get_args(Precision)),
                heatmap_size=None if size is None else (count(size[0]), count(size[1])),
                batch=None if batch is None else (count(batch["min"]), count(batch["opt"]), count(batch["max"])),
                tools={str(k): text(v) for k, v in data["tools"].items()},
                engine=None if engine is None else EngineInfo.from_json(engine),
                platform={str(k): text(v) for k, v in data["platform"].items()},
                verification=dict(data["verification"]),
                golden=None if data["golden"] is None else dict(data["golden"]),
                detector=None if data.get("detector") is None else DetectorInfo.from_json(data["detector"]),
            )
        except ModelFileError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"sidecar field is missing or unusable ({error}): export the model again") from error
        if result.kind == "engine" and (result.engine is None or result.batch is None):
            raise ModelFileError("the sidecar of an engine lacks engine or batch: export the model again")
        if (result.input == "image") != (result.detector is not None):
            raise ModelFileError("the sidecar of a graph with input image describes its detector: export it again")
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


def describe(artefact: str | Path, kind: Kind) -> Sidecar:
    """Read an artefact's sidecar; whether the two belong together is for `read_sidecar` and `read_artefact` to say.

    Raises:
        InputError: There is no such artefact.
        ModelFileError: The sidecar is missing, broken, or of another kind.
    """
    path, beside = Path(artefact), sidecar_path(artefact)
    if not path.is_file():
        raise InputError(f"no artefact {path}: write it with port-export")
    try:
        if beside.stat().st_size > MAX_SIDECAR_BYTES:
            raise ModelFileError(f"{beside} is larger than {MAX_SIDECAR_BYTES >> 20} MiB: not a sidecar; {_AGAIN}")
        data = json.loads(beside.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"expected the sidecar {beside.name} beside {path}, found none: {_AGAIN}") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {beside}: {error.strerror or error}: {_AGAIN}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise ModelFileError(f"{beside} is not JSON ({error}): {_AGAIN}") from error
    try:
        sidecar = Sidecar.from_json(data)
    except ModelFileError as error:
        raise ModelFileError(f"{beside}: {error}") from error
    if sidecar.kind != kind:
        raise ModelFileError(f"{beside}: expected an artefact of kind {kind!r}, got {sidecar.kind!r}: {_AGAIN}")
    return sidecar


def read_sidecar(artefact: str | Path, kind: Kind) -> Sidecar:
    """Read an artefact's sidecar and check that the two belong together.

    Args:
        artefact: The artefact's path; its sidecar lies beside it.
        kind: What the caller can run.

    Raises:
        InputError: There is no such artefact.
        ModelFileError: The sidecar is missing, broken, of another kind, or of another file's bytes.
    """
    sidecar, path = describe(artefact, kind), Path(artefact)
    size = path.stat().st_size
    if size != sidecar.size_bytes or sha256(path) != sidecar.sha256:
        raise _not_the_file(path, size, sidecar)
    return sidecar


def read_artefact(artefact: str | Path, kind: Kind) -> tuple[Sidecar, bytes]:
    """`read_sidecar`, and the very bytes that were compared: what is executable is read once.

    Raises:
        InputError: There is no such artefact.
        ModelFileError: As `read_sidecar`.
    """
    sidecar, data = describe(artefact, kind), Path(artefact).read_bytes()
    if hashlib.sha256(data).hexdigest() != sidecar.sha256:
        raise _not_the_file(Path(artefact), len(data), sidecar)
    return sidecar, data


def _not_the_file(path: Path, size: int, sidecar: Sidecar) -> ModelFileError:
    return ModelFileError(
        f"{path} ({size} bytes) is not the file that {sidecar_path(path).name} describes "
        f"({sidecar.size_bytes} bytes, SHA-256 {sidecar.sha256[:12]}…): {_AGAIN}"
    )
