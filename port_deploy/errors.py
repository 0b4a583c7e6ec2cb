# SPDX-License-Identifier: Apache-2.0
"""Every error that port_deploy raises on purpose.

Each message is one line: what was expected, what came, what to do. A command turns them into that line and exit
code 2; anything else that escapes is a bug and keeps its traceback. Test: tests/test_errors.py.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_LISTED = 5
"""Names that a message lists before it only counts."""


class PortError(Exception):
    """Base of all deliberate errors: the caller can mend what the message names."""


class InputError(PortError, ValueError):
    """An array, a number or an option is not what the call takes."""


class ModelFileError(PortError, ValueError):
    """A model file, an artefact or its sidecar is broken, foreign, or does not fit."""


class BackendUnavailableError(PortError, RuntimeError):
    """The backend or device that was asked for is not there; the message holds the command that mends it."""


class EngineMismatchError(BackendUnavailableError):
    """An engine is not what its sidecar says, or was built with or for something else than what is here."""


class ExportError(PortError, RuntimeError):
    """An artefact could not be written or built."""


class VerificationError(PortError, RuntimeError):
    """An artefact was built but disagrees with the oracle by more than the tolerance (exit code 1)."""


def listed(names: Sequence[str]) -> str:
    """Names with commas: the first MOST_LISTED, and how many more there are."""
    more = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def missing_extra(what: str, extra: str) -> BackendUnavailableError:
    """The error for an optional library that is not installed.

    Args:
        what: What needs it, e.g. ``"exporting to ONNX"``.
        extra: The extra that brings it, e.g. ``"export"``.

    Returns:
        An error whose message names the pip command that mends it.
    """
    return BackendUnavailableError(f'{what} needs libraries that are not installed: pip install "port-deploy[{extra}]"')
