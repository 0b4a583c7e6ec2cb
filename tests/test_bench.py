# SPDX-License-Identifier: Apache-2.0
"""port-bench: what it measures, what it refuses, and that README's table is what the JSON says. No time is asserted."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from port_deploy.backends import native
from port_deploy.bench import Plan, machine, suite
from port_deploy.bench.inputs import make_poses
from port_deploy.bench.peers import Bound, Job
from port_deploy.bench.plan import STANDARD, Contestant, contestants, flops_per_pose
from port_deploy.bench.report import comparisons, markdown
from port_deploy.bench.timing import Sweeper, cold_block, percentiles, warm_block
from port_deploy.bench.worker import FixedBatch
from port_deploy.cli import bench
from port_deploy.config import PortConfig
from port_deploy.errors import InputError
from port_deploy.verify import make_problems, verify

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import render

FIELDS = {
    "backend", "device", "dtype", "input", "batch", "threads", "cache", "p50_us", "p90_us", "p99_us", "max_error_px",
    "calls", "peak_share",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "random.safetensors"
    path.write_bytes(make_model().data)
    return path


@pytest.fixture(scope="module")
def stored(model):
    """The JSON of one small run."""
    path = model.parent / "result.json"
    options = ["--backend", "native-cpu", "torch", "--batch", "1", "3", "--threads", "1", "--seconds", "0.05"]
    assert bench.main([*options, "--model", str(model), "--json", str(path)]) == 0
    return path


def test_rows_hold_what_the_issue_lists(stored):
    result = json.loads(stored.read_text())
    rows = result["rows"]
    assert [(r["backend"], r["batch"], r["cache"]) for r in rows] == [
        (backend, batch, cache) for batch in (1, 3) for cache in ("warm", "cold") for backend in ("native-cpu", "torch")
    ]
    for row in rows:
        assert set(row) >= FIELDS
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"]
        assert row["max_error_px"] <= 1e-3
        assert row["calls"] >= 3
        assert row["peak_share"] > 0
    assert result["failures"] == result["skipped"] == []
    assert result["machine"]["processors"] == len(os.sched_getaffinity(0))
    assert set(result["versions"]) >= {"numpy", "torch"}
    assert result["peak"]["fp32_gflops"] > 1
    assert {c["times_faster"] > 0 for c in comparisons(result)} == {True}


def test_json_leaves_nothing_else_behind(stored):
    assert sorted(p.name for p in stored.parent.iterdir() if p.suffix != ".png") == ["random.safetensors", stored.name]


def test_models_with_a_variance_are_timed_too(make_model, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(make_model(variance=True, layers=1).data)
    path = tmp_path / "result.json"
    options = ["--backend", "native-cpu", "torch", "--batch", "1", "--threads", "1", "--seconds", "0.02"]
    assert bench.main([*options, "--model", str(tmp_path / "m.safetensors"), "--json", str(path)]) == 0
    assert {r["backend"] for r in json.loads(path.read_text())["rows"]} == {"native-cpu", "torch"}


def test_a_backend_beyond_the_tolerance_is_shown_and_ends_with_1(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(suite, "tolerance_px", lambda precision: 0.0)  # no float32 is exact
    path = tmp_path / "result.json"
    options = ["--backend", "torch", "--batch", "1", "--threads", "1", "--seconds", "0.05"]
    assert bench.main([*options, "--model", str(model), "--json", str(path)]) == 1
    result = json.loads(path.read_text())
    assert result["rows"] == []
    assert result["failures"][0]["backend"] == "torch"
    assert result["failures"][0]["max_error_px"] > 0
    captured = capsys.readouterr()
    assert "FAILED, not timed: torch" in captured.out
    assert "error: torch fp32 disagrees with the float64 oracle" in captured.err


def test_verification_uses_the_answers_of_the_timed_call(make_model):
    random = make_model()
    problems = make_problems(random, "joints")
    job = Job(Contestant("native-cpu", "fp32"), "joints", 1, "cpu", Path(), 0)
    core = native.load(random, threads=1)

    def bind_with(offset):
        def bind(poses):
            b, n = poses.second.shape
            out = native.HostBuffers(
                np.empty((b, n, 2), np.float32), np.empty((b, n), np.float32), np.empty((b, n), np.bool_)
            )

            def call():
                core.refine(poses.first, poses.second, poses.threshold, out)
                out.joints[-1, 0] += offset

            return Bound(call, lambda: (out.joints, out.confidence, out.mask))

        return bind

    assert verify(FixedBatch(bind_with(0), job, random.spec, 8), problems, "fp32").passed
    assert not verify(FixedBatch(bind_with(0.01), job, random.spec, 8), problems, "fp32").passed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "cuda"], "finds no CUDA device"),
        (["--backend", "caffe"], "cannot time 'caffe'"),
        (["--backend", "onnxruntime", "--dtype", "bf16"], "none of these backends"),
        (["--batch", "0"], "expected batch from 1 to 65536, got 0\n"),
        (["--batch", "1", "-3", "0"], "expected batch from 1 to 65536, got -3, 0\n"),
        (["--threads", "1000"], "expected threads from 1"),
        (["--seconds", "0"], "expected seconds above 0"),
        (["--model", "nobody"], "no model 'nobody'"),
        (["--json", "/nowhere/at/all.json"], "no such folder"),
        (["--cache", "hot"], "invalid choice"),
    ],
)
def test_mistakes_end_with_one_line_and_2(options, says, capsys):
    if "cuda" in options:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    assert bench.main(options) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_without_options_the_plan_is_the_readmes():
    plan = bench.plan_of(bench.parser().parse_args([]))
    assert plan.contestants == STANDARD == contestants([], [], "cpu")
    assert (plan.warm, plan.cold, plan.input, plan.extras) == ((1, 8, 64, 256), (1, 8), "joints", True)
    assert plan.threads[0] == 1
    assert [str(c) for c in contestants([], ["bf16"], "cpu")] == ["native-cpu bf16", "openvino bf16"]
    with pytest.raises(InputError, match="expected seconds"):
        Plan(seconds=float("nan"))


def test_every_timed_pose_is_refined_with_the_same_number_of_masked_joints(make_model):
    spec = make_model().spec
    for kind in ("joints", "heatmaps"):
        poses = make_poses(spec, kind, 16, 64, 0.3)
        backend = native.load(make_model(), threads=1)
        out = native.HostBuffers(
            np.empty((16, 21, 2), np.float32), np.empty((16, 21), np.float32), np.empty((16, 21), np.bool_)
        )
        (backend.refine if kind == "joints" else backend.run)(poses.first, poses.second, poses.threshold, out)
        assert out.mask.sum(-1).tolist() == [6] * 16


def test_the_sweep_is_larger_than_the_last_level_cache_and_is_read_on_every_processor():
    cache = machine.last_level_cache_bytes()
    assert cache >= max(machine.caches().values(), default=0)
    sweep = Sweeper(cache)
    assert sweep.size_bytes >= 2 * cache
    assert sweep() == len(os.sched_getaffinity(0)) * sweep.size_bytes // 8


def test_the_sweep_is_not_timed_and_precedes_every_cold_call():
    order = []
    times = cold_block(lambda: order.append("call"), lambda: (order.append("sweep"), time.sleep(0.02)), 0.06)
    assert order[0] == "call"  # lazy work of a first call is no cache effect
    assert order[1:] == ["sweep", "call"] * len(times)
    assert min(times) < 10_000_000
    assert len(warm_block(lambda: None, 0.01)) > 100


def test_percentiles_are_those_of_single_calls():
    assert percentiles(range(0, 101_000, 1000)) == {"p50_us": 50.0, "p90_us": 90.0, "p99_us": 99.0}


def test_operations_of_the_papers_model():
    assert flops_per_pose(PortConfig.preset("paper"), 21) == pytest.approx(23.8e6, rel=0.002)


def test_peak_is_measured_and_checked():
    assert native.peak_flops("fp32", 0.01) > 1e8
    if native.build_info()["bf16"]:
        assert native.peak_flops("bf16", 0.01) > 1e8
    for precision, seconds in (("fp32", 0.0), ("fp32", float("nan")), ("fp64", 0.1)):
        with pytest.raises(InputError):
            native.peak_flops(precision, seconds)


def readme(folder):
    path = folder / "README.md"
    path.write_text(f"# Above\n\n{render.START}\n{render.END}\n\nbelow\n")
    return path


def test_render_writes_the_block_only_and_check_sees_a_changed_number(stored, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = readme(tmp_path)
    options = ["--result", str(stored), "--readme", str(path)]
    assert render.main([*options, "--check"]) == 1
    assert render.main(options) == 0
    assert render.main([*options, "--check"]) == 0
    text = path.read_text()
    assert text.startswith("# Above\n")
    assert text.endswith("\nbelow\n")
    first_row = next(line for line in text.splitlines() if line.startswith("| **native-cpu**"))
    path.write_text(text.replace(first_row, re.sub(r"\d", lambda d: str((int(d[0]) + 1) % 10), first_row, count=1)))
    capsys.readouterr()
    assert render.main([*options, "--check"]) == 1
    assert "python benchmarks/render.py" in capsys.readouterr().err
    picture = stored.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 5_000 < len(picture) < 150_000


def test_render_without_markers_or_result_says_so(stored, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text("no markers\n")
    assert render.main(["--result", str(stored), "--readme", str(path)]) == 2
    assert render.START in capsys.readouterr().err
    assert path.read_text() == "no markers\n"
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"rows": ')
    assert render.main(["--result", str(damaged), "--readme", str(readme(tmp_path))]) == 2


def test_table_shows_failures_and_ratios(stored):
    result = json.loads(stored.read_text())
    result["failures"] = [{**result["rows"][1], "max_error_px": 7.0, "summary": "max 7 px"}]
    table = markdown(result)
    assert "| torch | failed | failed | failed | 7 px |" in table
    assert "native against the fastest other, fp32" in table


def test_ratio_is_rounded_once(stored):
    result = json.loads(stored.read_text())
    for row in result["rows"]:
        row["p50_us"] = 1164.6 if row["backend"] == "torch" else 100.0
    assert "11.6×" in markdown(result)
    assert "11.7×" not in markdown(result)
