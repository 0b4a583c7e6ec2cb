# SPDX-License-Identifier: Apache-2.0
"""Measures, stores and renders: ``python benchmarks/run.py``, about ten minutes on an idle machine.

Writes results/<machine>.json, whole or not at all, then the plot beside it and the README's table (render.py).
Options are those of port-bench. Exit codes: as port-bench; render.py's where that fails.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import render

from port_deploy.bench import measure
from port_deploy.cli.bench import parser, plan_of
from port_deploy.cli.common import run, say, to_json
from port_deploy.errors import VerificationError
from port_deploy.files import write_text


def command(argv: list[str] | None) -> int:
    options = parser().parse_args(argv)
    start = time.perf_counter()
    result = measure(plan_of(options), lambda message: say(f"{time.perf_counter() - start:5.0f} s  {message}"))
    path = Path(options.json) if options.json else render.RESULTS / f"{result['machine']['slug']}.json"
    write_text(path, to_json(result) + "\n")
    say(f"wrote {path}")
    if result["failures"]:
        raise VerificationError("; ".join(f"{f['backend']} {f['dtype']}: {f['summary']}" for f in result["failures"]))
    return 0 if options.json else render.main(["--result", str(path)])


if __name__ == "__main__":
    sys.exit(run(command, None))
