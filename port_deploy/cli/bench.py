# SPDX-License-Identifier: Apache-2.0
"""port-bench: every backend side by side, verified first. May use: bench, cli.common. Test: tests/test_bench.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from port_deploy.bench import Plan, measure
from port_deploy.bench.plan import (
    BATCHES,
    COLD_BATCHES,
    CPU_BACKENDS,
    CUDA_BACKENDS,
    CUDA_BATCHES,
    DTYPES,
    contestants,
    thread_settings,
)
from port_deploy.bench.report import comparisons, decode_lines, groups, heading, matrix, number, problems, title
from port_deploy.bench.report_cuda import blocks, gpu_lines
from port_deploy.cli.common import Parser, run, say, table, to_json
from port_deploy.errors import InputError
from port_deploy.files import check_writable, write_text

EXAMPLE = """\
Without options it measures the README's table: all backends, one thread and all, about eight minutes.
Times are wall time of one call. warm: calls one after another; cold: the last-level cache is swept before each call,
as a detector that runs in between would. Backends take turns, each in a process of its own. Exit code 1: a backend
disagrees with the float64 oracle and was not timed.
With --device cuda the whole line is timed, from launch to the end of the stream's synchronisation; "NAME graph" is the
same captured in a CUDA graph, and its rows "graph" the time of a call inside a graph of many.

  port-bench --backend native-cpu onnxruntime --batch 1 8 --threads 1 --json out.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of port-bench."""
    return run(_command, argv)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = Parser(
        prog="port-bench",
        description="Time the refinement of poses on every backend, after verifying each.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--model", default="hand21", help="bundled name or .safetensors (default: hand21)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    options.add_argument(
        "--backend",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"{', '.join(CPU_BACKENDS)}; on cuda: {', '.join(CUDA_BACKENDS)}",
    )
    options.add_argument("--dtype", nargs="+", default=[], choices=DTYPES, help="of the encoder's matrix products")
    options.add_argument(
        "--input",
        choices=("joints", "heatmaps"),
        help="heatmaps: the whole line (default: joints; heatmaps with --device cuda)",
    )
    options.add_argument(
        "--batch",
        nargs="+",
        type=int,
        default=[],
        metavar="B",
        help=f"poses a call (default: {' '.join(map(str, BATCHES))}; cold {' '.join(map(str, COLD_BATCHES))}; "
        f"cuda {' '.join(map(str, CUDA_BATCHES))})",
    )
    options.add_argument(
        "--threads", nargs="+", type=int, default=[], metavar="N", help="default: 1, and all processors"
    )
    options.add_argument("--cache", choices=("warm", "cold", "both"), default="both", help="default: both")
    options.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="timed for each backend, batch and cache (default: 1)"
    )
    options.add_argument("--json", metavar="FILE", help="write everything measured there; - prints it instead of text")
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the options ask for.

    Raises:
        InputError: An option is out of range, or the options do not go together.
    """
    batches = tuple(sorted(set(options.batch)))
    selected = bool(options.backend or options.dtype or options.batch or options.input not in (None, "joints"))
    if options.device == "cuda":
        return Plan(
            model=options.model,
            device="cuda",
            contestants=contestants(options.backend, options.dtype, "cuda"),
            input=options.input or "heatmaps",
            warm=batches or CUDA_BATCHES,
            cold=(),
            graph=batches or CUDA_BATCHES,
            threads=(1,),
            seconds=options.seconds,
            extras=not selected,
            strict=bool(options.backend),
        )
    return Plan(
        model=options.model,
        device=options.device,
        contestants=contestants(options.backend, options.dtype, options.device),
        input=options.input or "joints",
        warm=() if options.cache == "cold" else batches or BATCHES,
        cold=() if options.cache == "warm" else batches or COLD_BATCHES,
        threads=tuple(dict.fromkeys(options.threads)) or thread_settings(),
        seconds=options.seconds,
        extras=not selected,
        strict=bool(options.backend),
    )


def _command(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    plan = plan_of(options)
    if options.json and options.json != "-":
        if not Path(options.json).absolute().parent.is_dir():
            raise InputError(f"cannot write {options.json}: no such folder: make it first")
        check_writable(options.json)
    result = measure(plan, say)
    text = to_json(result)
    if options.json == "-":
        print(text)
    else:
        if options.json:
            write_text(options.json, text + "\n")
        _print(result)
    for failure in result["failures"]:
        say(f"error: {failure['backend']} {failure['dtype']} disagrees with the float64 oracle: {failure['summary']}")
    return 1 if result["failures"] else 0


def _print(result: dict[str, Any]) -> None:
    print(heading(result))
    if "gpu" in result["machine"]:
        for name, header, cells in blocks(result):
            print(f"\n{name}\n{table([[c.strip('*') for c in row] for row in cells], header)}")
    else:
        for kind, threads, cache, rows in groups(result):
            header, cells = matrix(rows)
            print(f"\n{title(kind, threads, cache)}: µs a pose, median\n{table(cells, header)}")
    found = comparisons(result)
    if found:
        print("\nnative against the fastest other backend, µs a call")
        lines = [
            (
                title(c["input"], c["threads"], c["cache"]),
                c["dtype"],
                c["batch"],
                number(c["native_us"]),
                c["fastest_other"],
                number(c["fastest_other_us"]),
                f"{c['times_faster']:.2f}×",
            )
            for c in found
        ]
        print(table(lines, ("", "dtype", "B", "native", "fastest other", "its µs", "times faster")))
    for line in (*decode_lines(result), *gpu_lines(result), *problems(result)):
        print(f"\n{line}")
