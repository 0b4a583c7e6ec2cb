# SPDX-License-Identifier: Apache-2.0
"""port-bench on a GPU, as far as none is needed: the plan, the bindings on a stand-in for the device, tables and plot.

The numbers in here are made up to be shown; what a GPU measures is in test_cuda.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from port_deploy.bench import markdown_cuda, peers_cuda
from port_deploy.bench.inputs import make_poses
from port_deploy.bench.job import Job, artefact_file
from port_deploy.bench.machine import slug
from port_deploy.bench.plan import CUDA_BACKENDS, Contestant, contestants
from port_deploy.bench.prepare import export_artefact, what_it_needs
from port_deploy.bench.worker import FixedBatch
from port_deploy.cli import bench
from port_deploy.verify import make_problems, verify

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import plot  # noqa: E402
import render  # noqa: E402


def test_the_plan_of_a_gpu_is_the_whole_line_in_two_precisions():
    plan = bench.plan_of(bench.parser().parse_args(["--device", "cuda"]))
    assert (plan.input, plan.cold, plan.threads, plan.extras) == ("heatmaps", (), (1,), True)
    assert plan.warm == plan.graph == (1, 2, 4, 8, 16, 64, 256, 1024)
    assert {c.dtype for c in plan.contestants} == {"fp32", "fp16"}
    assert {c.backend for c in plan.contestants} == set(CUDA_BACKENDS)
    options = ["--device", "cuda", "--backend", "native-cuda", "--dtype", "bf16", "--batch", "3", "--input", "joints"]
    plan = bench.plan_of(bench.parser().parse_args(options))
    assert (plan.contestants, plan.warm, plan.graph) == ((Contestant("native-cuda", "bf16"),), (3,), (3,))
    assert (plan.input, plan.strict, plan.extras) == ("joints", True, False)


def test_graphs_share_the_artefact_of_what_they_capture(tmp_path):
    def job(name: str) -> Job:
        return Job(Contestant(name, "fp16"), "heatmaps", 1, "cuda", tmp_path, 0)

    assert what_it_needs(job("aotinductor graph")) == artefact_file(job("aotinductor")) == tmp_path / "model-fp16-1.pt2"
    assert what_it_needs(job("tensorrt graph")) == tmp_path / "model-fp16.engine"
    assert what_it_needs(job("native-cuda graph")) is None
    assert what_it_needs(job("torch.compile graph")) == job("torch.compile graph")
    assert {c.backend for c in contestants([], [], "cuda")} == set(CUDA_BACKENDS)
    opened = peers_cuda.openers()
    assert {name.removesuffix(" graph") for name in CUDA_BACKENDS} == set(opened)


@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
@pytest.mark.parametrize("name", ["torch", "torch graph", "torchscript"])
def test_what_is_bound_and_read_is_right(name, kind, make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(peers_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    waited: list[int] = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(peers_cuda, "capture", lambda queue, times: SimpleNamespace(replay=queue))
    model = make_model()
    job = Job(Contestant(name, "fp32"), kind, 1, "cuda", tmp_path, 0)
    job.model.write_bytes(model.data)
    if job.artefact:
        export_artefact(job)
    bind, detail = peers_cuda.open_cuda_peer(job)
    assert "PyTorch" in detail
    assert ("CUDA graph" in detail) == name.endswith("graph")
    problems = make_problems(model, kind, (64, 64) if kind == "heatmaps" else None)
    assert verify(FixedBatch(bind, job, model.spec, 4), problems, "fp32").passed
    assert waited
    bound = bind(make_poses(model.spec, kind, 2, 64, 0.3))
    before = [np.array(a) for a in bound.read()]
    assert np.isnan(before[0]).all()  # poisoned until the call
    bound.queue()
    assert not np.isnan(next(iter(bound.read()))).any()


def made_up() -> dict[str, Any]:
    def row(backend: str, dtype: str, batch: int, cache: str, us: float) -> dict[str, Any]:
        times = {"p50_us": us, "p90_us": us, "p99_us": us}
        key = {"backend": backend, "dtype": dtype, "batch": batch, "cache": cache, "threads": 1, "input": "heatmaps"}
        return {**key, **times, "max_error_px": 0.01, "peak_share": None, "device": "cuda"}

    rows = [
        row(name, dtype, batch, cache, us * batch**0.5)
        for name, us in (("native-cuda", 10.0), ("torch", 4000.0), ("torch graph", 300.0))
        for dtype in ("fp32", "fp16")
        for batch in (1, 64)
        for cache in (("warm", "graph") if name == "torch graph" else ("warm",))
    ]
    machine = {
        "cpu": "Made Up", "architecture": "x86_64", "processors": 1, "features": [], "caches": {}, "virtual": True,
        "os": "Linux", "kernel": "Linux 6",
        "gpu": {"name": "NVIDIA Made Up 100", "compute_capability": "9.0", "cuda": "13.0"},
    }  # fmt: skip
    return {
        "format_version": 1,
        "machine": machine,
        "versions": {"port-deploy": "0", "torch": "0"},
        "commit": {"hash": "abc", "dirty": False},
        "date": "2000-01-01T00:00:00+00:00",
        "model": {"name": "hand21", "joints": 21},
        "method": {"heatmap_size": 64, "masked_share": 0.3},
        "peak": {},
        "rows": rows,
        "failures": [],
        "skipped": [],
        "floor": {"launch": {"p50_us": 7.2}, "graph": {"p50_us": 6.1}},
        "decode_bandwidth": [
            {"batch": 1024, "codec": "dark", "dtype": "float16", "p50_us": 60.0, "gb_s": 2800.0, "share_of_copy": 0.9}
        ],
    }


def test_the_table_shows_calls_the_floor_and_the_gpu(capsys):
    text = markdown_cuda(made_up(), "x.png")
    assert "| **native-cuda fp16** | **10.0** | **80.0** | 0.01 px |" in text
    assert "Heatmaps, inside a CUDA graph of many calls:" in text
    assert "- fp16, B=1: 30.0× the fastest other (torch graph)" in text
    assert "takes 7.20 µs from launch" in text
    assert "Decode alone, `dark`, float16 heatmaps, B=1024: 60.0 µs, 2,800 GB/s, 90% of a copy" in text
    assert "NVIDIA Made Up 100 (compute capability 9.0, CUDA 13.0)" in text
    bench._print(made_up())
    assert "native-cuda fp16" in capsys.readouterr().out
    assert slug(made_up()["machine"]) == "nvidia-made-up-100"


def test_render_fills_the_block_of_the_gpu_and_leaves_the_other(tmp_path):
    pytest.importorskip("matplotlib")
    result = tmp_path / "made-up.json"
    result.write_text(json.dumps(made_up()))
    readme = tmp_path / "README.md"
    readme.write_text(f"{render.START}\nuntouched\n{render.END}\n{render.CUDA_START}\n{render.CUDA_END}\n")
    options = ["--result", str(result), "--readme", str(readme)]
    assert render.main([*options, "--check"]) == 1
    assert render.main(options) == 0
    assert render.main([*options, "--check"]) == 0
    assert "untouched" in readme.read_text()
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert plot.lines_of(made_up())[0][2] == [(1, 10.0), (64, 80.0)]


def test_the_newest_of_each_kind_is_rendered(tmp_path):
    for name, date, gpu in (("a", "2001", True), ("b", "2002", True), ("c", "2000", False)):
        result = made_up() | {"date": date}
        if not gpu:
            del result["machine"]["gpu"]
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    assert sorted(p.name for p in render.newest(tmp_path)) == ["b.json", "c.json"]
