# SPDX-License-Identifier: Apache-2.0
"""Renders the README's table and the plot from a stored result; measures nothing.

    python benchmarks/render.py            table and plot
    python benchmarks/render.py --check    exit code 1 if README.md does not show what the JSON says

The table stands between ``<!-- bench:start -->`` and ``<!-- bench:end -->``; without them: exit code 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from port_deploy.bench import markdown
from port_deploy.cli.common import Parser, run, say
from port_deploy.errors import InputError
from port_deploy.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"


def main(argv: list[str] | None = None) -> int:
    return run(command, argv)


def command(argv: list[str] | None) -> int:
    options = Parser(prog="render.py", description="Render README.md's benchmark table and the plot.")
    options.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the README differs")
    options.add_argument("--result", type=Path, help="the JSON (default: the newest in benchmarks/results)")
    options.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file that holds the markers")
    chosen = options.parse_args(argv)
    path = chosen.result or newest(RESULTS)
    result = read(path)
    plot = path.with_suffix(".png")
    shown = plot.resolve().relative_to(ROOT).as_posix() if plot.resolve().is_relative_to(ROOT) else plot.name
    text = read_text(chosen.readme)
    expected = replace_block(text, markdown(result, shown), chosen.readme)
    if chosen.check:
        if text != expected:
            say(f"error: the table in {chosen.readme.name} is not what {path.name} says: python benchmarks/render.py")
            return 1
        return 0
    draw(result, plot)
    write_text(chosen.readme, expected)
    say(f"wrote the table in {chosen.readme} and {plot}")
    return 0


def newest(folder: Path) -> Path:
    """The result measured last, by the date inside it: a checkout gives all files one time."""
    dated = [(read(p).get("date", ""), p) for p in sorted(folder.glob("*.json"))]
    if not dated:
        raise InputError(f"no result in {folder}: python benchmarks/run.py measures one")
    return max(dated)[1]


def read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): measure again with benchmarks/run.py") from error
    if not isinstance(result, dict) or result.get("format_version") != 1 or not result.get("rows"):
        raise InputError(f"{path} is not a result of port-bench: measure again with benchmarks/run.py")
    return result


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def replace_block(text: str, block: str, path: Path) -> str:
    """The text with what stands between the markers replaced."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise InputError(f"{path} lacks the lines {START} and {END}: put them where the table goes")
    before, rest = text.split(START)
    return f"{before}{START}\n{block}\n{END}{rest.split(END)[1]}"


def draw(result: dict[str, Any], path: Path) -> None:
    from plot import draw as draw_plot

    draw_plot(result, path)


if __name__ == "__main__":
    sys.exit(main())
