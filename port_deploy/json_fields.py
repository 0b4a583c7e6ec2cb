# SPDX-License-Identifier: Apache-2.0
"""Fields of JSON that came from outside, checked one by one. May use: nothing. Test: tests/test_sidecar.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def one_of(data: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> Any:
    """A field that has one of a few values; ValueError otherwise."""
    if data[key] not in choices:
        raise ValueError(f"{key} {data[key]!r} is none of {', '.join(choices)}")
    return data[key]


def text(value: Any) -> str:
    """Text; ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value


def count(value: Any) -> int:
    """A whole number of at least 0; ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise ValueError(f"expected a whole number of at least 0, got {value!r}")
    return value
