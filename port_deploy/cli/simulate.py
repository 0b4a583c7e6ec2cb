# SPDX-License-Identifier: Apache-2.0
"""port-simulate: a predictions file for port-eval from true poses, without a detector or a picture.

May use: nn.simulate, nn.data, skeleton, files, errors, cli.common. Test: tests/test_simulate.py.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from port_deploy.cli.common import Parser, print_json, run, say
from port_deploy.cli.train import numbers
from port_deploy.errors import InputError, missing_extra
from port_deploy.files import check_writable, write_bytes
from port_deploy.skeleton import Skeleton

DESCRIPTION = """Write what a simulated detector says of held-out poses, as a predictions file: the detector that
port-train simulates, or with --patches the paper's H36M_masked: squares of 30 pixels on joints, their number drawn from
B(17, 0.02)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of port-simulate."""
    return run(body, argv)


def body(argv: Sequence[str] | None) -> int:
    """Parse, simulate, write."""
    p = Parser(prog="port-simulate", description=DESCRIPTION)
    p.add_argument("file", metavar="FILE[:ignore=JOINT+JOINT]", help="poses as port-train takes them")
    p.add_argument("--skeleton", required=True, help="bundled name or a .json file")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="PREDICTIONS.npz")
    p.add_argument("--hold-out", action="append", default=[], metavar="FIELD=VALUE,VALUE", help="the poses to use")
    p.add_argument("--count", type=int, default=4000, help="views")
    p.add_argument("--patches", action="store_true", help="hide joints under squares; only poses that have one")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="print the result as one JSON object")
    options = p.parse_args(argv)
    try:
        from port_deploy.nn.data import DataSpec
        from port_deploy.nn.simulate import simulate
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise missing_extra("simulating a detector", "train") from error
    if options.output.suffix != ".npz":
        raise InputError(f"expected the output to be an .npz file, got {str(options.output)!r}")
    check_writable(options.output)
    skeleton = Skeleton.load(options.skeleton)
    spec = DataSpec.parse(options.file)
    held_out = numbers(options.hold_out, "--hold-out")
    arrays = simulate(spec, skeleton, held_out, options.count, options.patches, options.seed, say)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(options.output, buffer.getvalue())
    labelled = arrays["labelled"]
    facts = {"file": str(options.output), "poses": len(labelled), "joints": int(labelled.sum())}
    if "patched" in arrays:
        facts["patched"] = int(arrays["patched"].sum())
    if options.json:
        print_json(facts)
    else:
        print(", ".join(f"{k} {v:,}" if isinstance(v, int) else str(v) for k, v in facts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
