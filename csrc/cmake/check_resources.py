#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels take of a GPU, from the compiler's own report: fails on spills and on registers beyond limits.

    check_resources.py BUILD_FOLDER [--json]

Reads the OBJECT.log files that csrc/cmake/keep_log.sh leaves in a build with PORT_CUDA=ON. Shared memory is asked for
at launch and held by csrc/tests/emulated/test_line_batch.cpp. Exit code 1: beyond a limit; 2: nothing to check.
Needs the standard library only. Test: tests/test_cuda_build.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
LINE = re.compile(r"line_kernelINS\w*?(Half|Bfloat|Plain)ELi(\d+)ELi(\d+)ELb([01])ELi(\d+)")
DECODE = re.compile(r"decode_kernelILb([01])")
PEAKS = re.compile(r"\d(peak|simcc)_kernel")


def describe(symbol: str) -> tuple[str, int]:
    """The kernel's name for people and the registers that it may take: what its blocks per multiprocessor leave."""
    if found := LINE.search(symbol):
        form, columns, poses, cluster, blocks = found[1], *map(int, found.groups()[1:])
        kind = "cluster" if cluster else "throughput" if poses > 1 else "block"
        return f"line {form} {8 * columns} joints {kind}", min(255, 65536 // (256 * blocks))
    if found := DECODE.search(symbol):
        return f"decode {'block' if found[1] == '1' else 'warp'} per map", 65536 // (128 * 4)
    if found := PEAKS.search(symbol):
        return f"decode {found[1]}", 65536 // (128 * 4)
    return symbol, 255


def read_logs(folder: Path) -> list[dict[str, Any]]:
    """One row per kernel and architecture."""
    rows: list[dict[str, Any]] = []
    for log in sorted(folder.rglob("*.o.log")):
        symbol, architecture, frame = "", "", (0, 0, 0)
        for line in log.read_text("utf-8", "replace").splitlines():
            if found := ENTRY.search(line):
                symbol, architecture = found[1], found[2]
            elif found := FRAME.search(line):
                frame = (int(found[1]), int(found[2]), int(found[3]))
            elif (found := USED.search(line)) and symbol:
                name, limit = describe(symbol)
                spilled = frame[1] + frame[2]
                rows.append(
                    {
                        "kernel": name,
                        "arch": architecture,
                        "registers": int(found[1]),
                        "limit": limit,
                        "spilled": spilled,
                    }
                )
                symbol = ""
    return rows


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """One line per kernel that spills or takes too much."""
    lines = []
    for row in rows:
        where = f"{row['kernel']} for {row['arch']}"
        if row["spilled"]:
            lines.append(f"{where}: expected no spills, got {row['spilled']} bytes: make its tiles smaller (lines.h)")
        if row["registers"] > row["limit"]:
            lines.append(f"{where}: expected at most {row['limit']} registers, got {row['registers']}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check what the CUDA kernels take of a GPU.")
    parser.add_argument("folder", type=Path, help="build folder of PORT_CUDA=ON")
    parser.add_argument("--json", action="store_true", help="every kernel, as JSON")
    options = parser.parse_args(arguments)
    rows = read_logs(options.folder)
    if not any(row["kernel"].startswith("line") for row in rows):
        print(
            f"error: no compiler report of a line kernel in {options.folder}: build with PORT_CUDA=ON", file=sys.stderr
        )
        return 2
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for name in sorted({row["kernel"] for row in rows}):
            used = [f"{row['arch'][3:]}: {row['registers']}" for row in rows if row["kernel"] == name]
            print(f"{name:36} registers on sm_ {', '.join(used)}")
    for line in faults(rows):
        print("error: " + line, file=sys.stderr)
    return 1 if faults(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
