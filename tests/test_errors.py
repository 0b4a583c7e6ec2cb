# SPDX-License-Identifier: Apache-2.0
"""errors.py: one base for all, the usual Python class beside it, and what mends a missing library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import port_deploy
from port_deploy import errors
from port_deploy.backends.native import translate

ALL = (
    errors.InputError,
    errors.ModelFileError,
    errors.BackendUnavailableError,
    errors.ExportError,
    errors.VerificationError,
)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_a_port_error_and_a_usual_one(kind: type[errors.PortError]) -> None:
    assert issubclass(kind, errors.PortError)
    assert issubclass(kind, (ValueError, RuntimeError))


def test_a_missing_library_names_the_command() -> None:
    error = errors.missing_extra("exporting to ONNX", "export")
    assert isinstance(error, errors.BackendUnavailableError)
    assert str(error).endswith('pip install "port-deploy[export]"')


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("m", "input"), errors.InputError),
        (("m", "model_file"), errors.ModelFileError),
        (("m", "unavailable"), errors.BackendUnavailableError),
    ],
)
def test_the_cores_errors_become_ours(arguments: tuple[str, str], kind: type[Exception]) -> None:
    assert type(translate(RuntimeError(*arguments))) is kind
    assert str(translate(RuntimeError(*arguments))) == "m"


def test_nothing_raises_a_bare_exception() -> None:
    """Deliberate errors are PortErrors: one of Python's own would end in a traceback."""
    forbidden = {"Exception", "RuntimeError", "SystemExit", "OSError"}
    found = set()
    for path in Path(port_deploy.__file__).parent.rglob("*.py"):
        raised = (n.exc for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Raise))
        calls = (e.func for e in raised if isinstance(e, ast.Call) and isinstance(e.func, ast.Name))
        found |= {(path.name, f.id) for f in calls if f.id in forbidden}
    assert not found, "raise one of port_deploy.errors instead"
