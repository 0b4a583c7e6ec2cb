# SPDX-License-Identifier: Apache-2.0
"""Scores the bundled models on real detectors' predictions and puts the rows into README.md.

    python benchmarks/evaluate.py DATA     rewrites the rows between ``<!-- eval:start -->`` and ``<!-- eval:end -->``

DATA is the folder that holds the research data (PORT_DATA's ``data``), which is not part of the project.
"""

from __future__ import annotations

import sys
from pathlib import Path

from port_deploy.cli.common import Parser, run, say
from port_deploy.cli.evaluate import MARKDOWN_HEADER, markdown_row
from port_deploy.cli.info import put_between
from port_deploy.evaluate import evaluate
from port_deploy.predictions import load_predictions
from port_deploy.refiner import Refiner
from port_deploy.weights import bundled_models

ROOT = Path(__file__).resolve().parents[1]
MARKERS = ("<!-- eval:start -->\n", "<!-- eval:end -->")
HANDS, PHOTOGRAPHS, SPORTS = "panoptic_dev_hand21", "photos774_body17_litehrnet", "lsp_body14_openpose"
OCCLUDED = "mpii_val_body16_3detectors"
RUNS = (
    *((HANDS, model, "pred", "conf") for model in ("hand21", "hand21-paper", "hand21-free")),
    *((PHOTOGRAPHS, model, "pred", "conf") for model in ("coco17", "coco17-free", "mpii16", "mpii16-free")),
    *((SPORTS, model, "pred", "conf") for model in ("mpii16", "mpii16-free")),
    *((OCCLUDED, "mpii16", pred, "visible") for pred in ("pred_hourglass", "pred_tompson_format")),
)
"""Predictions, the bundled model for them, and the arrays; ``visible``: joints labelled as occluded count as unsure."""


def main(argv: list[str] | None = None) -> int:
    return run(command, argv)


def command(argv: list[str] | None) -> int:
    options = Parser(prog="evaluate.py", description="Put the bundled models' scores on real detectors into README.md.")
    options.add_argument("data", type=Path, help="folder of the prediction files")
    options.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file that holds the markers")
    chosen = options.parse_args(argv)
    rows = list(MARKDOWN_HEADER)
    for name, model, pred, conf in (r for r in RUNS if r[1] in bundled_models()):
        refiner = Refiner.load(model)
        file = chosen.data / f"{name}.npz"
        predictions = load_predictions(file, refiner.model.skeleton, pred, conf)
        rows.append(markdown_row(str(file), model, evaluate(refiner, predictions), pred, conf))
    put_between(chosen.readme, *MARKERS, "\n".join(rows) + "\n")
    say("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
