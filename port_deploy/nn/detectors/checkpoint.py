# SPDX-License-Identifier: Apache-2.0
"""Reading MMPose's ``.pth`` files without running anything that is in them.

A ``.pth`` is a pickle: a program. PyTorch's own reader of weights gets it first, with NumPy's arrays allowed, which a
published file holds in its metadata. What a training run saved names classes of libraries that are not here (MMEngine's
history, optimiser, scheduler): such a file is read by an unpickler that knows tensors and ordered dictionaries alone
and turns every other global into a placeholder that does nothing. May use: errors, NumPy, torch.
Test: tests/test_detectors_checkpoint.py.
"""

from __future__ import annotations

import pickle
import re
import tarfile
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from port_deploy.errors import InputError, ModelFileError

_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,  # type: ignore[attr-defined]
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,  # type: ignore[attr-defined]
    ("torch", "Size"): torch.Size,
}
"""All that the restricted unpickler resolves; PyTorch's reader adds the classes of storages by itself."""

_SIZE = re.compile(r"(?:input_size|image_size)['\"]?\s*[=:]\s*[\[(]\s*(\d+)\s*,\s*(\d+)\s*,?\s*[\])]")
_UDP = re.compile(r"UDPHeatmap|use_udp['\"]?\s*[=:]\s*True")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds that matters here.

    Attributes:
        path: The file.
        tensors: By key, as stored.
        config: The text of the configuration that it was trained with; empty where the file has none.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: str

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(H, W) of the crops according to the configuration; None where it does not say, or says several."""
        sizes = {(int(height), int(width)) for width, height in _SIZE.findall(self.config)}  # written width first
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def udp(self) -> bool:
        """The configuration has unbiased data processing."""
        return _UDP.search(self.config) is not None


class _Inert:
    """Stands for whatever a pickle names and nobody here needs; takes any argument, state or item, keeps nothing."""

    def __new__(cls, *_args: Any, **_options: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def __call__(self, *_args: Any, **_options: Any) -> _Inert:
        return self

    def append(self, _item: Any) -> None:
        """As a list's; nothing is kept."""

    def extend(self, _items: Any) -> None:
        """As a list's; nothing is kept."""


class _Unpickler(pickle.Unpickler):
    """Resolves `_ALLOWED`; any other global is `_Inert`."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _ALLOWED.get((module_name, global_name), _Inert)


def _restricted_load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_RESTRICTED = SimpleNamespace(Unpickler=_Unpickler, load=_restricted_load, __name__="restricted")


def _numpy_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a NumPy array in a pickle needs, under the names of NumPy 1 and 2."""
    rebuild: Any = np.ndarray(0).__reduce__()[0]  # type: ignore[call-overload]
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype, bytes]
    for package in ("numpy.core", "numpy._core"):
        allowed += [(rebuild, f"{package}.multiarray._reconstruct"), (scalar, f"{package}.multiarray.scalar")]
    return allowed + [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of a checkpoint: published or from a training run, of MMPose 0.x or 1.x, zip or older format.

    Of a file with a moving average the averaged weights count, which MMEngine stores under ``state_dict``.

    Args:
        path: A ``.pth`` file.

    Raises:
        InputError: It is not there.
        ModelFileError: It is no checkpoint, is damaged, or holds no weights.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no checkpoint {file}: give the .pth file of a detector, e.g. from MMPose's model zoo")
    advice = f"{file} is not a checkpoint that can be read: give the .pth file of MMPose 0.x or 1.x"
    try:
        if tarfile.is_tarfile(file):
            raise ModelFileError(f"{advice} (this is a tar archive)")
        content = _load(file)
    except ModelFileError:
        raise
    except Exception as error:  # a pickle can fail in any way
        lines = str(error).splitlines()
        raise ModelFileError(f"{advice} ({type(error).__name__}: {lines[0][:200] if lines else ''})") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ModelFileError(f"{advice} (it holds no state_dict)")
    tensors = {k: v for k, v in dict(state).items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise ModelFileError(f"{advice} (its state_dict holds no tensors)")
    return Checkpoint(file, tensors, _config_text(content))


def _load(file: Path) -> Any:
    with torch.serialization.safe_globals(_numpy_globals()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # it names what the reader of weights refuses
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_RESTRICTED)


def _config_text(content: Any) -> str:
    meta = content.get("meta")
    values = [meta.get(key) for key in ("cfg", "config")] if isinstance(meta, dict) else []
    return next((v for v in values if isinstance(v, str)), "")
