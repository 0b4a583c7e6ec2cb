# SPDX-License-Identifier: Apache-2.0
"""The reproduction report: the paper's Table I for any predictions, with intervals and baselines, and its figures.

One self-contained HTML page, pictures inside, and the same pictures as PNG files beside it.
May use: baselines, evaluate, figures, files, metrics, nn.attention (where torch is), weights.
Test: tests/test_report.py.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy import figures, metrics
from port_deploy.baselines import LinearCompletion, neighbour_mean
from port_deploy.errors import InputError
from port_deploy.evaluate import Evaluation
from port_deploy.files import write_bytes, write_text
from port_deploy.weights import Model

COLUMNS = ("EPE to root", "EPE", "P-EPE", "P-EPE, the paper's way", "joints below δ")
DETECTORS = (("HRNet_w32", 28.5), ("HRNet_w48", 63.6), ("HRNetv2_w18", 9.6), ("MobileNetv2", 9.6), ("ResNet50", 34.0))
"""Parameters in millions as the paper's Table II gives them."""
NO_TORCH = "without PyTorch, attention cannot be looked into: pip install 'port-deploy[train]'"
STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#111827;max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #e5e7eb}
th:first-child,td:first-child{text-align:left}small{color:#6b7280;display:block}.good{color:#059669}.bad{color:#dc2626}
img{max-width:100%}figure{margin:1.5rem 0}figcaption{color:#6b7280}"""


@dataclass(frozen=True)
class Entry:
    """One model on one file of predictions.

    Attributes:
        data: The file's name.
        model: The model.
        result: What `evaluate` found.
        completion: The linear baseline, where poses to learn it from were given.
    """

    data: str
    model: Model
    result: Evaluation
    completion: LinearCompletion | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        label: Who answered.
        values: One for each of COLUMNS, pixels; NaN where nothing can be scored.
        intervals: Their 95 % intervals.
        change: True for differences.
    """

    label: str
    values: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    change: bool = field(default=False)


def measures(joints: NDArray[Any], result: Evaluation, root: int) -> tuple[NDArray[np.float64], ...]:
    """Errors [B, N] of some joints for each of COLUMNS, on the joints that `result` scores."""
    scored = np.isfinite(result.errors_before)
    errors = metrics.joint_errors(joints, result.truth, scored)
    return (
        metrics.joint_errors(joints, result.truth, scored, root),
        errors,
        metrics.p_errors(joints, result.truth, scored),
        metrics.p_errors(joints, result.truth, scored, swapped=True),
        np.where(result.low, errors, np.nan),
    )


def rows(entry: Entry, draws: int = 2000) -> list[Row]:
    """The detector, PORT, what it changed, and the baselines on the same joints, with 95 % intervals over poses.

    The baselines rebuild the joints below δ of the poses that PORT refined, whatever ``refine`` says.
    """
    result, spec = entry.result, entry.model.spec
    root = spec.skeleton.root
    before = measures(result.detected, result, root)
    reached = np.asarray(result.mask.any(1, keepdims=True))
    low = np.asarray(result.low & reached, np.bool_)
    answers = [("+ PORT", result.joints)]
    middle = neighbour_mean(spec.skeleton, result.detected, low)
    answers.append(("+ mean of the neighbours", middle))
    if entry.completion is not None:
        answers.append(("+ linear completion (PCA)", entry.completion(result.detected, low)))
    table: list[Row] = []
    for label, joints in answers:
        after = measures(joints, result, root)
        spans = [metrics.bootstrap_interval(b, a, draws) for b, a in zip(before, after, strict=True)]
        old, new = (tuple(metrics.mean(m) for m in side) for side in (before, after))
        if not table:
            table.append(Row("detector", old, tuple(s[0] for s in spans)))
        table.append(Row(label, new, tuple(s[1] for s in spans)))
        change = tuple(a - b for a, b in zip(new, old, strict=True))
        table.append(Row("difference", change, tuple(s[2] for s in spans), True))
    return table


def write_report(entries: Sequence[Entry], folder: Path, ablations: Sequence[dict[str, Any]] = ()) -> Path:
    """Write ``index.html`` and its pictures into a folder.

    Args:
        entries: What to report.
        folder: Made where it does not exist.
        ablations: Rows for Table III: dictionaries of one shape, shown as they are.

    Returns:
        The page.

    Raises:
        InputError: There is nothing to report, or the folder cannot be written.
        BackendUnavailableError: matplotlib is not installed.
    """
    if not entries:
        raise InputError("expected at least one model on one file of predictions to report on")
    parts: list[str] = []
    for number, entry in enumerate(entries, 1):
        spec, result = entry.model.spec, entry.result
        parts.append(f"<h2>{escape(entry.data)} · {escape(spec.name)}</h2>")
        parts.append(
            f"<p>{result.samples:,} poses, {result.scored:,} joints scored, {result.masked_fraction:.1%} of them below "
            f"δ = {result.threshold:.3g} ({escape(spec.threshold_source)}), refine {spec.refine}; "
            f"{result.left_alone:,} poses left alone. Pixels, with 95 % intervals by drawing poses again.</p>"
        )
        parts.append(_table_one(rows(entry)))
        pictures = [
            ("confidence", "Fig. 4: error by confidence", figures.error_boxes(result)),
            (
                "occlusion",
                "Fig. 5: change of the error by the number of joints below δ",
                figures.change_by_occlusion(result),
            ),
        ]
        if result.reliability is not None:
            parts.append(f"<p>Standard deviations: {escape(str(result.reliability))}.</p>")
            caption = "Predicted against actual error, of tenths of the repaired joints by their standard deviation"
            pictures.append(("reliability", caption, figures.reliability_plot(result.reliability)))
        attention = _attention(entry)
        if attention is None:
            parts.append(f"<p>Fig. 6: {escape(NO_TORCH)}</p>")
        else:
            pictures.append(("attention", "Fig. 6: what the joints attend to, beside Ã²", attention))
        for kind, caption, picture in pictures:
            name = f"{number:02d}-{kind}.png"
            write_bytes(folder / name, picture)
            text = base64.b64encode(picture).decode("ascii")
            parts.append(
                f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{text}"/>'
                f"<figcaption>{escape(caption)} ({name})</figcaption></figure>"
            )
    parts.append("<h2>Parameters (Table II)</h2>" + _table_two(entries))
    if ablations:
        parts.append("<h2>Ablations (Table III)</h2>" + _plain(ablations))
    page = folder / "index.html"
    title = "PORT: reproduction report"
    write_text(
        page,
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"/><title>{title}</title><style>{STYLE}</style>\n'
        f"<h1>{title}</h1>\n" + "\n".join(parts) + "\n</html>\n",
    )
    return page


def _attention(entry: Entry) -> bytes | None:
    """Fig. 6 of the poses that have a joint below δ; None without PyTorch."""
    try:
        from port_deploy.nn.attention import mean_attention
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    result = entry.result
    some = np.flatnonzero(result.mask.any(1))[:256]
    chosen = some if len(some) else np.arange(min(256, len(result.detected)))
    maps = mean_attention(entry.model, result.detected[chosen], result.confidence[chosen], result.threshold)
    skeleton = entry.model.spec.skeleton
    return figures.attention_maps(maps, skeleton.hop_matrices((1,))[0], skeleton.names)


def _table_one(table: Sequence[Row]) -> str:
    lines = ["<table><tr><th></th>" + "".join(f"<th>{escape(c)}</th>" for c in COLUMNS) + "</tr>"]
    for row in table:
        cells = [f"<td>{escape(row.label)}</td>"]
        for value, (low, high) in zip(row.values, row.intervals, strict=True):
            if value != value:
                cells.append("<td>–</td>")
                continue
            form = "+.2f" if row.change else ".2f"
            kind = ("bad" if low > 0 else "good" if high < 0 else "") if row.change else ""
            cells.append(f'<td class="{kind}">{value:{form}}<small>{low:{form}} to {high:{form}}</small></td>')
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _table_two(entries: Sequence[Entry]) -> str:
    ours = {e.model.spec.name: e.model.spec.config.parameter_count() / 1e6 for e in entries}
    lines = ["<table><tr><th>method</th><th>parameters, million</th></tr>"]
    lines += [f"<tr><td>{n} (as the paper gives it)</td><td>{v:.1f}</td></tr>" for n, v in DETECTORS]
    lines += [f"<tr><td>PORT, {escape(n)}</td><td>{v:.2f}</td></tr>" for n, v in ours.items()]
    return "\n".join([*lines, "</table>"])


def _plain(table: Sequence[dict[str, Any]]) -> str:
    head = list(table[0])
    lines = ["<table><tr>" + "".join(f"<th>{escape(str(k))}</th>" for k in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(str(r.get(k, '–')))}</td>" for k in head) + "</tr>" for r in table]
    return "\n".join([*lines, "</table>"])
