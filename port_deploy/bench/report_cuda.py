# SPDX-License-Identifier: Apache-2.0
"""Tables of a measurement on a GPU: µs a call. May use: report. Test: tests/test_bench_cuda.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from port_deploy.bench.report import NATIVE, Result, Row, comparisons, heading, line, name_of, number

TITLES = {
    "warm": "from launch to the end of the synchronisation",
    "graph": "inside a CUDA graph of many calls",
}


def blocks(result: Result) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and cells of each table: launch + synchronise, then inside a graph."""
    for cache, how in TITLES.items():
        rows = [r for r in result["rows"] if r["cache"] == cache]
        if not rows:
            continue
        batches = sorted({r["batch"] for r in rows})
        header = ["µs a call, median", *(f"B={b}" for b in batches), "max error"]
        yield f"{rows[0]['input']}, {how}", header, list(_cells(rows, batches))


def _cells(rows: Sequence[Row], batches: Sequence[int]) -> Iterator[list[str]]:
    best = {
        (d, b): min((r["p50_us"] for r in rows if (r["dtype"], r["batch"]) == (d, b)), default=0.0)
        for d in {r["dtype"] for r in rows}
        for b in batches
    }
    names = dict.fromkeys(map(name_of, rows))
    for name in sorted(names, key=lambda n: not n.startswith(NATIVE)):
        own = {r["batch"]: r for r in rows if name_of(r) == name}
        cells = []
        for batch in batches:
            row = own.get(batch)
            text = number(row["p50_us"]) if row else "–"
            cells.append(f"**{text}**" if row and row["p50_us"] == best[row["dtype"], batch] else text)
        worst = max(r["max_error_px"] for r in own.values())
        yield [f"**{name}**" if name.startswith(NATIVE) else name, *cells, f"{worst:.2g} px"]


def gpu_lines(result: Result) -> list[str]:
    """The floor of a launch, and the decode's bytes a second beside a copy's, one sentence each."""
    lines = []
    if floor := result.get("floor"):
        lines.append(
            f"Floor: a kernel that writes one number takes {number(floor['launch']['p50_us'])} µs from launch to "
            f"synchronised, {number(floor['graph']['p50_us'])} µs in a graph."
        )
    for row in result.get("decode_bandwidth", []):
        lines.append(
            f"Decode alone, `{row['codec']}`, {row['dtype']} heatmaps, B={row['batch']}: {number(row['p50_us'])} µs, "
            f"{number(row['gb_s'])} GB/s, {row['share_of_copy']:.0%} of a copy on the device."
        )
    return lines


def markdown_cuda(result: Result, plot: str | None = None) -> str:
    """The README's block for a GPU.

    Args:
        result: From `suite.measure` with device ``cuda``, or read back from its JSON.
        plot: Path of the picture, relative to the README.
    """
    text: list[str] = []
    for title, header, cells in blocks(result):
        text += [f"{title[0].upper()}{title[1:]}:", "", line(header), line(["---"] + ["---:"] * (len(header) - 1))]
        text += [*map(line, cells), ""]
    for found in comparisons(result):
        if found["cache"] == "warm":
            text.append(
                f"- {found['dtype']}, B={found['batch']}: {found['times_faster']:.1f}× the fastest other "
                f"({found['fastest_other']})"
            )
    if plot:
        text += ["", f"![µs a call over the batch size]({plot})", ""]
    model, method = result["model"], result["method"]
    side = method["heatmap_size"]
    text += [
        f"Median of single calls; `{model['name']}`, heatmaps `[B,{model['joints']},{side},{side}]` to refined joints, "
        f"{method['masked_share']:.0%} of the joints masked; *graph*: captured in a CUDA graph. Error: largest "
        "distance from the float64 oracle in a 256-pixel crop.",
        "",
        *[f"{sentence}\n" for sentence in gpu_lines(result)],
        f"{heading(result)}. Method, every row, p90 and p99: [benchmarks/](benchmarks/README.md).",
    ]
    return "\n".join(text)
