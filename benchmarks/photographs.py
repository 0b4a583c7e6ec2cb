# SPDX-License-Identifier: Apache-2.0
"""A real heatmap detector end to end on real photographs: the detector alone beside detector and PORT in one graph.

    python benchmarks/photographs.py FOLDER            prints error by confidence, before and after
    python benchmarks/photographs.py FOLDER --readme   and puts it between the markers of README.md

FOLDER holds the reference detector, which is no part of the project: ``efficientpose2lite_s4.onnx`` and its heatmaps
of 200 labelled photographs, ``photos200_heatmaps46.npz``. Two parts:

* 200 photographs: the recorded heatmaps through the line, against the labels, in percent of the person's box. The
  photographs themselves cannot be had.
* 2 photographs of scikit-image: crops through the exported graph. Each joint that the detector sees is hidden under a
  patch of the photograph's own background, one at a time; truth is where it saw the joint before.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from port_deploy import PoseEngine, Refiner
from port_deploy.cli.common import Parser, print_json, run, say
from port_deploy.cli.info import put_between
from port_deploy.demo import PATCH_PX, photograph
from port_deploy.errors import InputError, missing_extra
from port_deploy.export import DetectorOptions, ExportOptions, export_model
from port_deploy.joint_names import match_names
from port_deploy.metrics import change_interval

ROOT = Path(__file__).resolve().parents[1]
MARKERS = ("<!-- photographs:start -->\n", "<!-- photographs:end -->")
NAMES = "head,neck,rsho,relb,rwri,thorax,lsho,lelb,lwri,pelvis,rhip,rkne,rank,lhip,lkne,lank"
"""The detector's channels."""
PHOTOGRAPHS = {
    "camera": ((-455, -105, 695, 1045), (400, 280)),
    "astronaut": ((-500, -310, 1000, 1190), (74, 10)),
}
"""The square that is cropped (x1, y1, x2, y2), and the corner of a patch of background, photograph pixels."""
SEEN = 0.5
"""A joint of lower confidence is not hidden: the detector's word for where it is counts for little."""
BINS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.01)


def main(argv: list[str] | None = None) -> int:
    return run(command, argv)


def command(argv: list[str] | None) -> int:
    options = Parser(prog="photographs.py", description="A real detector on real photographs, before and after PORT.")
    options.add_argument("folder", type=Path, help="folder of the reference detector")
    options.add_argument("--model", default="mpii16", help="bundled model or .safetensors, of skeleton mpii16")
    options.add_argument("--readme", action="store_true", help="put the table into README.md")
    options.add_argument("--json", action="store_true", help="one JSON object on standard output")
    chosen = options.parse_args(argv)
    recorded, (hidden, others), worst = labelled(chosen.folder, chosen.model), *patched(chosen.folder, chosen.model)
    parts = {"labelled": recorded, "hidden": hidden, "others": others}
    if chosen.json:
        print_json({"merged_max_px": worst} | {k: table(*v) for k, v in parts.items()})
        return 0
    rows = markdown(parts)
    say("\n".join(rows))
    say(f"merged graph against detector and oracle apart: {worst:.1e} px")
    if chosen.readme:
        put_between(ROOT / "README.md", *MARKERS, "\n".join(rows) + "\n")
    return 0


def labelled(folder: Path, model: str) -> tuple[Any, Any, Any]:
    """Confidence, error before and after [200, N], in percent of the longer side of the box; NaN where unlabelled."""
    path = folder / "photos200_heatmaps46.npz"
    if not path.is_file():
        raise InputError(f"no {path}: name the folder of the reference detector")
    with np.load(path, allow_pickle=False) as data:
        arrays = {k: data[k] for k in ("heatmaps", "affine", "joints", "labelled", "box", "names")}
    refiner = Refiner.load(model)
    order = match_names(arrays["names"].tolist(), refiner.model.skeleton)
    maps, affine = np.ascontiguousarray(arrays["heatmaps"][:, order]), arrays["affine"].astype(np.float32)
    before, after = refiner(maps, affine=affine, threshold=0), refiner(maps, affine=affine)
    truth, known = arrays["joints"][:, order], arrays["labelled"][:, order]
    size = arrays["box"][:, 2:].max(1)[:, None] / 100  # boxes are x, y, width, height
    errors = [np.where(known, np.linalg.norm(r.joints - truth, axis=-1) / size, np.nan) for r in (before, after)]
    return before.confidence, errors[0], errors[1]


def patched(folder: Path, model: str) -> tuple[tuple[Any, Any], float]:
    """The same of the hidden joints, and of all others, in photograph pixels; and the merged graph's largest error."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise missing_extra("cutting crops out of photographs", "viz") from error

    def crop(pixels: Any, box: tuple[int, ...], side: int) -> Any:
        return np.asarray(Image.fromarray(pixels).crop(box).resize((side, side), Image.Resampling.BILINEAR))

    detector = DetectorOptions(str(folder / "efficientpose2lite_s4.onnx"), joints=NAMES)
    with tempfile.TemporaryDirectory() as temporary:
        (done,) = export_model(model, temporary, ExportOptions(("onnx",), detector=detector))
        engine = PoseEngine.load(done.path)
    side = engine.detector.image_size[0]
    scores, errors, where = [], [], []
    for name, (box, background) in PHOTOGRAPHS.items():
        pixels = photograph(name)
        scale = (box[2] - box[0]) / side
        affine = np.float32([[scale, 0, box[0] + scale / 2 - 0.5], [0, scale, box[1] + scale / 2 - 0.5]])
        seen = engine(crop(pixels, box, side)[None], affine=affine, threshold=0)
        hide = np.flatnonzero(seen.confidence[0] >= SEEN)
        x, y = background
        patch = pixels[y : y + PATCH_PX, x : x + PATCH_PX]
        crops = []
        for joint in hide:
            left, top = (round(float(v)) - PATCH_PX // 2 for v in seen.joints[0, joint])
            image = Image.fromarray(pixels.copy())
            image.paste(Image.fromarray(patch), (left, top))
            crops.append(crop(np.asarray(image), box, side))
        batch = np.stack(crops)
        alone, refined = engine(batch, affine=affine, threshold=0), engine(batch, affine=affine)
        known = seen.confidence[0] >= SEEN
        pair = [np.where(known, np.linalg.norm(r.joints - seen.joints, axis=-1), np.nan) for r in (alone, refined)]
        scores.append(alone.confidence)
        errors.append(pair)
        where.append(np.arange(alone.confidence.shape[1]) == hide[:, None])
    confidence, hidden = np.concatenate(scores), np.concatenate(where)
    before, after = (np.concatenate([e[i] for e in errors]) for i in (0, 1))
    parts = [(confidence, np.where(w, before, np.nan), np.where(w, after, np.nan)) for w in (hidden, ~hidden)]
    return (parts[0], parts[1]), done.verification.max_error_px


def table(confidence: Any, before: Any, after: Any) -> list[dict[str, Any]]:
    """One row for each bin of confidence, and one for all."""
    known = np.isfinite(before)
    rows = []
    for low, high in (*pairwise(BINS), (BINS[0], BINS[-1])):
        inside = known & (confidence >= low) & (confidence < high)
        row = {"from": low, "to": min(high, 1.0), "joints": int(inside.sum())}
        if inside.any():
            pair = [np.where(inside, e, np.nan) for e in (before, after)]
            change, half = change_interval(*pair)
            row |= {"before": float(before[inside].mean()), "after": float(after[inside].mean())}
            row |= {"change": change, "change_95": half, "nearer": float((after < before)[inside].mean())}
        rows.append(row)
    return rows


def markdown(parts: dict[str, Any]) -> list[str]:
    recorded, hidden, others = (table(*parts[k]) for k in ("labelled", "hidden", "others"))
    lines = [
        "| confidence | labelled joints | error, % of the box | hidden joints | error, px | other joints | error, px |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for a, b, c in zip(recorded, hidden, others, strict=True):
        name = "all" if (a["from"], a["to"]) == (0.0, 1.0) else f"{a['from']:.1f} to {a['to']:.1f}"
        cells = [f"{row['joints']:,} | {_pair(row, digits)}" for row, digits in ((a, 2), (b, 1), (c, 1))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ends = [
        f"| {r[-1]['change']:+.{d}f} ± {r[-1]['change_95']:.{d}f}" for r, d in ((recorded, 2), (hidden, 1), (others, 1))
    ]
    return [*lines, f"| change, 95 % interval | {' | '.join(ends)} |"]


def _pair(row: dict[str, Any], digits: int) -> str:
    if "before" not in row:
        return "–"
    before, after = f"{row['before']:.{digits}f}", f"{row['after']:.{digits}f}"
    return before if before == after else f"{before} → {after}"


if __name__ == "__main__":
    sys.exit(main())
