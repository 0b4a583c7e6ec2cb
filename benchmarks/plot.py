# SPDX-License-Identifier: Apache-2.0
"""The plot beside a result, native in front: microseconds over the batch size.

Of a processor: a pose, one thread, warm. Of a GPU: a call, from launch to synchronised, and the floor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from port_deploy.errors import missing_extra
from port_deploy.files import atomic_path

INK, FAINT = "#1f2430", "#c9ced6"
NATIVE = {"fp32": "#c2410c", "bf16": "#f59e0b", "fp16": "#f59e0b"}
OTHERS = ("#1d4ed8", "#0f766e", "#7c3aed", "#4b5563", "#be185d", "#0891b2", "#65a30d", "#94a3b8")
MARKERS = "osD^vPX*"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the PNG, whole or not at all."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise missing_extra("drawing the plot", "viz") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series = lines_of(result)
    gpu = result["machine"].get("gpu")
    with plt.rc_context({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT}):
        figure, axes = plt.subplots(figsize=(8, 4.6), dpi=110)
        peers = 0
        for name, dtype, points in series:
            native = name.startswith("native")
            batches, times = zip(*points, strict=True)
            label = name if dtype == "fp32" else f"{name} {dtype}"
            if native:
                style: dict[str, Any] = {"color": NATIVE[dtype], "linewidth": 3.2, "marker": "o", "markersize": 7}
                style["zorder"] = 5
            else:
                style = {"color": OTHERS[peers % len(OTHERS)], "linewidth": 1.3, "markersize": 4.5, "zorder": 3}
                style["marker"] = MARKERS[peers % len(MARKERS)]
                peers += 1
            axes.plot(batches, times, linestyle="-" if dtype == "fp32" else (0, (4, 2)), label=label, **style)
        ticks = sorted({b for _, _, points in series for b, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(b) for b in ticks])
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.grid(True, which="major", color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("poses a call (B)")
        axes.set_ylabel("µs a call, median" if gpu else "µs a pose, median")
        if floor := result.get("floor"):
            axes.axhline(floor["launch"]["p50_us"], color=INK, linewidth=1, linestyle=":", label="floor: one launch")
        machine = result["machine"]
        how = "launch to synchronised" if gpu else "one thread, warm caches"
        where = gpu["name"] if gpu else f"{machine['cpu']} ({machine['architecture']})"
        axes.set_title(f"{result['model']['name']}, {series_input(result)}, {how}\n{where}", loc="left", fontsize=10.5)
        handles, labels = axes.get_legend_handles_labels()
        last = {line.get_label(): float(line.get_ydata()[-1]) for line in axes.lines}
        order = sorted(range(len(labels)), key=lambda i: -last[labels[i]])  # as the lines end, top to bottom
        axes.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
        )
        figure.tight_layout()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
        plt.close(figure)


def series_input(result: dict[str, Any]) -> str:
    return str(result["rows"][0]["input"])


def lines_of(result: dict[str, Any]) -> list[tuple[str, str, list[tuple[int, float]]]]:
    """Backend, precision and (B, µs) of every line, in the order of the table."""
    kind = series_input(result)
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in result["rows"]:
        if row["threads"] == 1 and row["cache"] == "warm" and row["input"] == kind:
            each = 1 if "gpu" in result["machine"] else row["batch"]
            found.setdefault((row["backend"], row["dtype"]), []).append((row["batch"], row["p50_us"] / each))
    return [(name, dtype, sorted(points)) for (name, dtype), points in found.items()]
