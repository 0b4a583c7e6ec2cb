# SPDX-License-Identifier: Apache-2.0
"""Pickles of plain values and NumPy arrays, read without running anything that they name.

Data sets and MMPose's dumps come as pickles. Only what rebuilds arrays and containers is let through; any other class
or function is refused before it is called. May use: errors, NumPy. Test: tests/test_formats.py.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from port_deploy.errors import InputError

ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "slice"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""Module and name of everything that a pickle may call."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise InputError(f"the pickle names {module}.{name}: only plain values and NumPy arrays are read")
        return super().find_class(module.replace("numpy.core", "numpy._core") if _NEW else module, name)


_NEW = hasattr(np, "_core")


def read_pickle(data: bytes, source: str, expected: str) -> Any:
    """What a pickle holds.

    Args:
        data: Its bytes.
        source: The file, for messages.
        expected: What file it should be, for messages.

    Raises:
        InputError: It is damaged, or holds anything but plain values and NumPy arrays.
    """
    try:
        value = _Reader(io.BytesIO(data), encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise InputError(
            f"{source} is no usable pickle ({type(error).__name__}: {error}): expected {expected}"
        ) from error
    _check(value, source)
    return value


def _check(value: Any, source: str, depth: int = 0) -> None:
    if depth > 50:
        raise InputError(f"{source}: nested too deeply")
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        for item in value.reshape(-1):
            _check(item, source, depth + 1)
    elif isinstance(value, dict):
        for item in value.values():
            _check(item, source, depth + 1)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            _check(item, source, depth + 1)
    elif not isinstance(value, (np.ndarray, np.generic, str, bytes, int, float, bool, type(None))):
        raise InputError(f"{source}: expected plain values and arrays, got {type(value).__name__}")
