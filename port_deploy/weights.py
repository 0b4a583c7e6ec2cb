# SPDX-License-Identifier: Apache-2.0
"""Model files: safetensors with the specification in the metadata. Never pickle.

The metadata holds one key, ``port_deploy``: the JSON of `ModelSpec`. The tensors are exactly those of
`PortConfig.parameter_shapes`, float32 or float16: written as float16 where every value of all of them is one, which
halves the file and changes nothing. May use: config, errors, files, NumPy, safetensors.
Test: tests/test_weights.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as serialise_tensors

from port_deploy.config import ModelSpec
from port_deploy.errors import InputError, ModelFileError
from port_deploy.files import write_bytes

METADATA_KEY = "port_deploy"
MAX_FILE_BYTES = 256 << 20
MAX_HEADER_BYTES = 4 << 20


@dataclass(frozen=True)
class Model:
    """A model in memory.

    Attributes:
        spec: Everything beside the weights.
        tensors: float32 arrays by name, shapes as `PortConfig.parameter_shapes` says.
        data: The file's bytes (native code parses these itself).
        source: Where it came from, for messages.
    """

    spec: ModelSpec
    tensors: Mapping[str, NDArray[np.float32]]
    data: bytes
    source: str


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    folder = resources.files("port_deploy") / "data" / "models"
    names = (p.name for p in folder.iterdir()) if folder.is_dir() else iter(())
    return tuple(sorted(n.removesuffix(".safetensors") for n in names if n.endswith(".safetensors")))


def load_model(name_or_path: str | Path) -> Model:
    """Load a bundled model by name, or a ``.safetensors`` file.

    Raises:
        InputError: There is no such model or file.
        ModelFileError: The file is truncated, foreign or hostile, or its tensors are not what its specification says.
    """
    bundled = bundled_models()
    if str(name_or_path) in bundled:
        entry = resources.files("port_deploy") / "data" / "models" / f"{name_or_path}.safetensors"
        return model_from_bytes(entry.read_bytes(), str(name_or_path))
    path = Path(name_or_path)
    if path.suffix != ".safetensors":
        raise InputError(f"no model {str(path)!r}: use one of {', '.join(bundled)} or a .safetensors file")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelFileError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: not a PORT model")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read model {path}: {error.strerror or error}") from error
    return model_from_bytes(data, str(path))


def model_from_bytes(data: bytes, source: str) -> Model:
    """Parse the bytes of a model file; every check of `load_model` applies."""
    try:
        spec = ModelSpec.from_json(_read_specification(data))
        raw = parse_tensors(data)
    except ModelFileError as error:
        raise ModelFileError(f"{source}: {error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{source} is not a usable safetensors file: {error}") from error
    tensors = _check_tensors(raw, spec, source)
    return Model(spec, tensors, data, source)


def model_to_bytes(spec: ModelSpec, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of a model file; the tensors are checked against the specification first."""
    checked: dict[str, NDArray[Any]] = dict(_check_tensors(dict(tensors), spec, spec.name))
    halves = {name: half(value) for name, value in checked.items()}
    if all(np.array_equal(halves[name], value) for name, value in checked.items()):
        checked = halves
    return serialise_tensors(checked, {METADATA_KEY: json.dumps(spec.to_json(), ensure_ascii=True)})


def half(values: NDArray[Any]) -> NDArray[np.float16]:
    """Weights as float16; what lies beyond its range becomes its largest number, and so is no longer equal."""
    limit = float(np.finfo(np.float16).max)
    rounded: NDArray[np.float16] = np.clip(values, -limit, limit).astype(np.float16)
    return rounded


def rounded(values: NDArray[Any]) -> NDArray[np.float32]:
    """Weights as models are shipped: 8 significant bits, as bfloat16 has, within float16's range.

    Such a file is half as large, and packs to 0.82 MB where all of float16's bits take 0.99. On real hands `hand21`
    moves by 0.017 px on average for it, and its errors stay what they were to 0.001 px.
    """
    fraction, exponent = np.frexp(np.asarray(values, np.float32))
    return half(np.ldexp(np.round(fraction * 256) / 256, exponent)).astype(np.float32)


def with_changes(model: Model, **changes: Any) -> Model:
    """The model with fields of its specification changed, in the bytes too.

    Raises:
        InputError: A value is not what the field takes.
    """
    spec = replace(model.spec, **changes)
    return Model(spec, model.tensors, model_to_bytes(spec, model.tensors), model.source)


def save_model(path: str | Path, spec: ModelSpec, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a model file, whole or not at all."""
    write_bytes(path, model_to_bytes(spec, tensors))


def _read_specification(data: bytes) -> Any:
    if len(data) < 8:
        raise ModelFileError("expected a safetensors file, got fewer than 8 bytes: download or export it again")
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ModelFileError(f"header of {size} bytes does not fit the file: truncated or not safetensors")
    try:
        header = json.loads(data[8 : 8 + size])
        text = header["__metadata__"][METADATA_KEY]
        return json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelFileError(f"its header is not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise ModelFileError("no port_deploy specification in its metadata: not written by port-train") from error


def _check_tensors(raw: dict[str, NDArray[Any]], spec: ModelSpec, source: str) -> dict[str, NDArray[np.float32]]:
    expected = spec.config.parameter_shapes()
    if set(raw) != set(expected):
        missing, extra = sorted(set(expected) - set(raw)), sorted(set(raw) - set(expected))
        raise ModelFileError(f"{source}: tensors missing {missing[:3]} or unknown {extra[:3]} for its config")
    result = {}
    for name, shape in expected.items():
        array = raw[name]
        if array.shape != shape or array.dtype not in (np.float32, np.float16):
            raise ModelFileError(
                f"{source}: expected {name} float32 or float16 {list(shape)}, got {array.dtype} {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise ModelFileError(f"{source}: {name} holds NaN or infinity: training diverged or the file is damaged")
        result[name] = np.ascontiguousarray(array, dtype=np.float32)
    return result
