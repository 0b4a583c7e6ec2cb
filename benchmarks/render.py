# SPDX-License-Identifier: Apache-2.0
"""Renders the README's table and the plot from a stored result; measures nothing.

    python benchmarks/render.py            table and plot
    python benchmarks/render.py --check    exit code 1 if README.md does not show what the JSON says

The table stands between ``<!-- bench:start -->`` and ``<!-- bench:end -->``; without them: exit code 2. A GPU's stands
between ``<!-- bench-cuda:start -->`` and ``<!-- bench-cuda:end -->``, once one has been measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from port_deploy.bench import markdown, markdown_cuda
from port_deploy.cli.common import Parser, run, say
from port_deploy.errors import InputError
from port_deploy.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
CUDA_START, CUDA_END = "<!-- bench-cuda:start -->", "<!-- bench-cuda:end -->"


def main(argv: list[str] | None = None) -> int:
    return run(command, argv)


def command(argv: list[str] | None) -> int:
    options = Parser(prog="render.py", description="Render README.md's benchmark table and the plot.")
    options.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the README differs")
    options.add_argument("--result", type=Path, help="the JSON (default: the newest in benchmarks/results)")
    options.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file that holds the markers")
    chosen = options.parse_args(argv)
    paths = [chosen.result] if chosen.result else newest(RESULTS)
    text = expected = read_text(chosen.readme)
    for path in paths:
        result = read(path)
        plot = path.with_suffix(".png")
        shown = plot.resolve().relative_to(ROOT).as_posix() if plot.resolve().is_relative_to(ROOT) else plot.name
        if on_gpu(result):
            expected = replace_block(expected, markdown_cuda(result, shown), chosen.readme, CUDA_START, CUDA_END)
        else:
            expected = replace_block(expected, markdown(result, shown), chosen.readme, START, END)
        if not chosen.check:
            draw(result, plot)
    names = ", ".join(p.name for p in paths)
    if chosen.check:
        if text != expected:
            say(f"error: a table in {chosen.readme.name} is not what {names} says: python benchmarks/render.py")
            return 1
        return 0
    write_text(chosen.readme, expected)
    say(f"wrote the tables of {names} in {chosen.readme}, and their plots")
    return 0


def on_gpu(result: dict[str, Any]) -> bool:
    return "gpu" in result["machine"]


def newest(folder: Path) -> list[Path]:
    """The results measured last, of a processor and of a GPU, by the date inside: a checkout gives files one time."""
    found: dict[bool, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*.json")):
        result = read(path)
        kind, dated = on_gpu(result), (str(result.get("date", "")), path)
        found[kind] = max(found.get(kind, dated), dated)
    if not found:
        raise InputError(f"no result in {folder}: python benchmarks/run.py measures one")
    return [path for _, path in found.values()]


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


def replace_block(text: str, block: str, path: Path, start: str, end: str) -> str:
    """The text with what stands between the markers replaced."""
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise InputError(f"{path} lacks the lines {start} and {end}: put them where the table goes")
    before, rest = text.split(start)
    return f"{before}{start}\n{block}\n{end}{rest.split(end)[1]}"


def draw(result: dict[str, Any], path: Path) -> None:
    from plot import draw as draw_plot

    draw_plot(result, path)


if __name__ == "__main__":
    sys.exit(main())
