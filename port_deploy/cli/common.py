# SPDX-License-Identifier: Apache-2.0
"""What all commands share: exit codes, clean errors, JSON and tables on standard output.

Exit codes: 0 done, 1 a check failed, 2 the user's mistake (one line on standard error), 130 interrupted. A bug keeps its
traceback. May use: errors. Test: tests/test_cli_common.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from port_deploy.errors import PortError, VerificationError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2, and that knows ``--version``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **options)
        self.add_argument("--version", action="version", version=f"port-deploy {package_version()}")

    def error(self, message: str) -> NoReturn:
        """Exit with one line that says what is wrong and how to see the options."""
        self.exit(2, f"error: {message}: {self.prog} --help lists the options\n")


def package_version() -> str:
    """The installed version."""
    try:
        return version("port-deploy")
    except PackageNotFoundError:
        return "not installed"


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """Run a command's body and turn deliberate errors into its exit code.

    Args:
        command: The body; it parses ``argv`` itself and returns 0 or 1.
        argv: Arguments without the program's name; None takes them from the command line.

    Returns:
        The exit code.
    """
    try:
        return command(argv)
    except VerificationError as error:
        return _complain(error, 1)
    except PortError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(error: PortError, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def print_json(value: Any) -> None:
    """One JSON object on standard output; NaN becomes null, so that every reader takes it."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not (value - value == 0.0):
        return None
    return value


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Rows as an aligned text table; a column of numbers is set flush right.

    Args:
        rows: Cells; everything is shown with str().
        header: Column titles, as many as each row has cells.

    Returns:
        Lines joined by newlines, without one at the end.
    """
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(r[i]) for r in [list(header), *cells]) for i in range(len(header))]
    right = [bool(cells) and all(_is_number(r[i]) for r in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()

    return "\n".join([line(header), "  ".join("─" * w for w in widths), *map(line, cells)])


def _is_number(text: str) -> bool:
    stripped = text.strip().rstrip("%×x").replace(",", "").replace("−", "-")
    if stripped in ("", "–", "-"):
        return True
    try:
        float(stripped.split()[0])
    except (ValueError, IndexError):
        return False
    return True
