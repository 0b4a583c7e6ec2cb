# SPDX-License-Identifier: Apache-2.0
"""Tables and comparisons of a measurement, for terminals and for the README.

May use: the standard library. Test: tests/test_bench.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
Row = Mapping[str, Any]

NATIVE = "native-"


def name_of(row: Row) -> str:
    """``openvino bf16``; fp32 goes without saying."""
    return str(row["backend"]) if row["dtype"] == "fp32" else f"{row['backend']} {row['dtype']}"


def groups(result: Result) -> Iterator[tuple[str, int, str, list[Row]]]:
    """Rows that belong into one table: input, threads, cache, rows."""
    keys = dict.fromkeys((r["input"], r["threads"], r["cache"]) for r in result["rows"])
    for kind, threads, cache in sorted(keys, key=lambda k: (k[0] != "joints", k[1], k[2] != "warm")):
        rows = [r for r in result["rows"] if (r["input"], r["threads"], r["cache"]) == (kind, threads, cache)]
        yield kind, threads, cache, rows


def title(kind: str, threads: int, cache: str) -> str:
    """``joints, 1 thread, warm caches``."""
    where = "inside a CUDA graph" if cache == "graph" else f"{cache} caches"
    return f"{kind}, {threads} thread{'s' if threads > 1 else ''}, {where}"


def matrix(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one group: p50 in µs a pose per batch, share of the peak, and the largest error."""
    batches = sorted({r["batch"] for r in rows})
    header = ["backend", *(f"B={b}" for b in batches), "share of peak", "max error px"]
    cells = []
    for name in dict.fromkeys(map(name_of, rows)):
        own = {r["batch"]: r for r in rows if name_of(r) == name}
        times = [number(own[b]["p50_us"] / b) if b in own else "–" for b in batches]
        share = max((r["peak_share"] for r in own.values() if r.get("peak_share")), default=None)
        worst = max(r["max_error_px"] for r in own.values())
        cells.append([name, *times, "–" if share is None else f"{share:.0%}", f"{worst:.2g}"])
    return header, cells


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def comparisons(result: Result) -> list[dict[str, Any]]:
    """How many times faster the native core is than the fastest other backend of the same precision.

    Bf16 is compared with bf16 only; where no other backend ran in a precision there is nothing to compare.
    """
    found = []
    for kind, threads, cache, rows in groups(result):
        for batch in sorted({r["batch"] for r in rows}):
            for dtype in dict.fromkeys(r["dtype"] for r in rows):
                here = [r for r in rows if r["batch"] == batch and r["dtype"] == dtype]
                ours = [r for r in here if r["backend"].startswith(NATIVE)]
                others = [r for r in here if not r["backend"].startswith(NATIVE)]
                if ours and others:
                    own, best = min(r["p50_us"] for r in ours), min(others, key=lambda r: float(r["p50_us"]))
                    found.append(
                        {
                            "input": kind,
                            "threads": threads,
                            "cache": cache,
                            "batch": batch,
                            "dtype": dtype,
                            "native_us": own,
                            "fastest_other": best["backend"],
                            "fastest_other_us": best["p50_us"],
                            "times_faster": best["p50_us"] / own,
                        }
                    )
    return found


def heading(result: Result) -> str:
    """Machine, versions, commit and date on one line."""
    machine, versions, commit = result["machine"], result["versions"], result["commit"]
    libraries = ", ".join(f"{k} {v}" for k, v in versions.items() if k not in ("port-deploy", "numpy"))
    features = [f for f in machine["features"] if f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")]
    cache = max(machine["caches"].values(), default=0) >> 20
    code = f"{commit['hash']}{'+' if commit['dirty'] else ''}" if commit["hash"] else "no commit"
    gpu = ""
    if found := machine.get("gpu"):
        gpu = f"{found['name']} (compute capability {found['compute_capability']}, CUDA {found['cuda']}); "
    return (
        f"{gpu}{machine['cpu']} ({machine['architecture']}, {machine['processors']} cores"
        f"{', virtual' if machine['virtual'] else ''}, {cache} MiB last-level cache, {', '.join(features)}); "
        f"{machine['os']}, {machine['kernel']}; port-deploy {versions.get('port-deploy', '?')} at {code}, {libraries}; "
        f"{result['date'][:10]}"
    )


def decode_lines(result: Result) -> list[str]:
    """What the decode alone and the start cost, one sentence each."""

    def weak(row: Mapping[str, Any]) -> str:
        return f" ({row['weak_maps']} below δ)" if "weak_maps" in row else ""

    lines = [
        f"Decode alone, {row['shape']} {row['codec']}{weak(row)}, 1 thread, {row['cache']} caches: "
        f"{number(row['p50_us'])} µs; "
        f"reading the array ({row['read_with']}) takes {number(row['read_us'])} µs: {row['ratio']:.2f}×."
        for row in result.get("decode", [])
    ]
    if start := result.get("startup"):
        lines.append(
            f"`import port_deploy` {start['import_ms']:.0f} ms; load and first refine "
            f"{start['load_and_first_refine_ms']:.0f} ms; packed model and workspace "
            f"{start['resident_model_bytes'] / 2**20:.1f} MiB; 1,000 calls with `out=` leave "
            f"{start['python_bytes_left_by_1000_calls']} bytes behind."
        )
    return lines


def problems(result: Result) -> list[str]:
    """Who failed the verification and who could not take part, one line each."""
    failed = [
        f"FAILED, not timed: {name_of(f)}, B={f['batch']}, {f['threads']} threads: {f['summary']}"
        for f in result["failures"]
    ]
    return failed + [f"Not measured: {name_of(s)}, {s['threads']} threads: {s['reason']}" for s in result["skipped"]]


def markdown(result: Result, plot: str | None = None) -> str:
    """The README's block: one thread, warm per batch, cold at the smallest batch, ratios, machine.

    Args:
        result: From `suite.measure`, or read back from its JSON.
        plot: Path of the picture, relative to the README.
    """
    kind = result["rows"][0]["input"] if result["rows"] else "joints"
    rows = [r for r in result["rows"] if r["threads"] == 1 and r["input"] == kind]
    warm = sorted({r["batch"] for r in rows if r["cache"] == "warm"})
    cold = sorted({r["batch"] for r in rows if r["cache"] == "cold"})[:1]
    columns = [("warm", b) for b in warm] + [("cold", b) for b in cold]
    header = ["µs a pose, 1 thread", *(f"B={b}" + (" cold" if c == "cold" else "") for c, b in columns), "max error"]
    best = {
        (c, b, d): min((r["p50_us"] for r in rows if (r["cache"], r["batch"], r["dtype"]) == (c, b, d)), default=0.0)
        for c, b in columns
        for d in {r["dtype"] for r in rows}
    }
    body = []
    names = dict.fromkeys(map(name_of, rows))
    for name in sorted(names, key=lambda n: not n.startswith(NATIVE)):
        own = {(r["cache"], r["batch"]): r for r in rows if name_of(r) == name}
        cells = []
        for key in columns:
            row = own.get(key)
            text = number(row["p50_us"] / row["batch"]) if row else "–"
            cells.append(f"**{text}**" if row and row["p50_us"] == best[(*key, row["dtype"])] else text)
        error = max(r["max_error_px"] for r in own.values())
        body.append([f"**{name}**" if name.startswith(NATIVE) else name, *cells, f"{error:.2g} px"])
    for failure in result["failures"]:
        body.append([name_of(failure), *["failed" for _ in columns], f"{failure['max_error_px']:.2g} px"])
    ratios = _ratio_rows(result, kind, columns)
    lines = [line(header), line(["---"] + ["---:"] * (len(header) - 1)), *map(line, body), *map(line, ratios), ""]
    if plot:
        lines += [f"![µs a pose over the batch size, one thread]({plot})", ""]
    model, method = result["model"], result["method"]
    shares = _shares(rows, result)
    shape = "2" if kind == "joints" else f"{method['heatmap_size']},{method['heatmap_size']}"
    lines += [
        f"Median of single calls; `{model['name']}`, {kind} `[B,{model['joints']},{shape}]`, "
        f"{method['masked_share']:.0%} of the joints masked; *cold*: the last-level cache swept before each call, as a "
        f"detector in between would. Error: largest distance from the float64 oracle in a 256-pixel crop. {shares}",
        "",
        *[f"{sentence}\n" for sentence in decode_lines(result)],
        f"{heading(result)}. Method, every row, p90 and p99: [benchmarks/](benchmarks/README.md).",
    ]
    return "\n".join(lines)


def _ratio_rows(result: Result, kind: str, columns: Sequence[tuple[str, int]]) -> list[list[str]]:
    found = {(c["dtype"], c["cache"], c["batch"]): c for c in comparisons(result) if c["threads"] == 1}
    rows = []
    for dtype in dict.fromkeys(key[0] for key in found):
        cells = [f"{found[(dtype, *k)]['times_faster']:.1f}×" if (dtype, *k) in found else "–" for k in columns]
        rows.append([f"*native against the fastest other, {dtype}*", *cells, ""])
    return rows


def _shares(rows: Sequence[Row], result: Result) -> str:
    """How much of the processor's peak the native core delivers, by the operations of the equations as written."""
    parts = []
    for dtype in ("fp32", "bf16"):
        shares = [
            r["peak_share"] for r in rows if r["backend"].startswith(NATIVE) and r["dtype"] == dtype and r["peak_share"]
        ]
        peak = result["peak"].get(f"{dtype}_gflops")
        if shares and peak:
            parts.append(f"{max(shares):.0%} of {peak:.0f} GFLOP/s in {dtype}")
    if not parts:
        return ""
    return (
        f"Native delivers up to {' and '.join(parts)}, the core's measured peak, counting "
        f"{result['model']['mflop_per_pose']:.1f} MFLOP a pose as the equations are written, folded away or not."
    )


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
