# SPDX-License-Identifier: Apache-2.0
"""What all commands share: exit codes, one-line errors, JSON, tables and progress.

A command is written as::

    def main(argv: Sequence[str] | None = None) -> int:
        return run(_command, argv)

    def _command(argv: Sequence[str] | None) -> int:
        options = Parser(prog="port-info", description="…").parse_args(argv)

Exit codes: 0 done; 1 a check failed (`VerificationError`, or what the body returns); 2 the user's mistake, one line on
stderr; 130 interrupted; 141 whoever read the output closed it. Anything else is a bug and keeps its traceback.
May use: errors, rich where it is installed. Test: tests/test_cli_common.py.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

from port_deploy.errors import PortError, VerificationError

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2, and that knows ``--version``.

    Options cannot be abbreviated, so that a new one breaks no script.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **options)
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
    """Run a command's body and turn what happens into an exit code.

    Args:
        command: The body; it parses ``argv`` itself and returns 0 or 1.
        argv: Arguments without the program's name; None takes them from the command line.

    Returns:
        The exit code, also where argparse would leave the process (``--help``, a wrong option).
    """
    try:
        code = command(argv)
        sys.stdout.flush()  # a closed pipe or a full disk must show here, not when Python exits
        return code
    except PortError as error:
        return _complain(str(error), 1 if isinstance(error, VerificationError) else 2)
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _complain(f"no space left to write the output ({error.strerror}): free some and run again", 2)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 2


def _complain(message: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """Send what is still buffered for stdout nowhere: Python would fail on it again when it exits."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file
        return


def print_json(value: Any) -> None:
    """One JSON value on standard output; NaN becomes null, so that every reader takes it."""
    print(to_json(value))


def to_json(value: Any) -> str:
    """The text that `print_json` prints; NumPy values become numbers and lists, other things their str()."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Rows as an aligned text table; a column of numbers is set flush right.

    Args:
        rows: Cells; everything is shown with str(), None as a dash.
        header: Column titles, as many as each row has cells.

    Returns:
        Lines joined by newlines, without one at the end.
    """
    cells = [["–" if c is None else str(c) for c in row] for row in rows]
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


def say(message: str) -> None:
    """One line for people on stderr, so that stdout stays readable for machines."""
    print(message, file=sys.stderr, flush=True)


def track(items: Sequence[T], description: str) -> Iterator[T]:
    """Go through ``items`` with a progress bar on stderr: rich's where it is installed, a count where it is not.

    Nothing is shown where stderr is not a terminal, so that logs stay readable.
    """
    if not sys.stderr.isatty():
        yield from items
    elif find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description, console=Console(stderr=True), transient=True)
    else:
        for i, item in enumerate(items, 1):
            print(f"\r{description} {i}/{len(items)}", end="", file=sys.stderr, flush=True)
            yield item
        print(file=sys.stderr)
