# SPDX-License-Identifier: Apache-2.0
"""What must be there before anything is timed: exported artefacts, and what torch.compile keeps on disk.

As much at once as there are processors: one after the other, it would take longer than the measuring.
May use: peers, inputs, export, backends, weights, errors. Test: tests/test_bench.py.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from port_deploy.backends import require
from port_deploy.backends.artefact import first_line
from port_deploy.bench.inputs import make_poses
from port_deploy.bench.job import Job, artefact_file, artefact_precision
from port_deploy.bench.peers import open_peer
from port_deploy.bench.plan import GRAPH, Plan
from port_deploy.errors import PortError
from port_deploy.sidecar import sidecar_path
from port_deploy.weights import load_model

MAX_AT_ONCE = 8

Key = Path | Job | None
"""An artefact, which jobs may share, or a job whose compiler keeps its own cache; None: nothing to prepare."""


def what_it_needs(job: Job) -> Key:
    """What must be prepared for a job."""
    if job.artefact:
        return artefact_file(job)
    return job if job.contestant.backend.removesuffix(GRAPH) == "torch.compile" else None


def prepare(jobs: Sequence[Job], plan: Plan, say: Callable[[str], None]) -> dict[Key, str]:
    """Prepare all jobs.

    Args:
        jobs: Of all thread settings.
        plan: Batch sizes, heatmap size, share of masked joints.
        say: Takes lines about the progress.

    Returns:
        What could not be prepared, and why.
    """
    tasks: dict[Key, tuple[str, Future[None]]] = {}
    failed: dict[Key, str] = {}
    at_once = min(len(os.sched_getaffinity(0)), MAX_AT_ONCE)
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job in jobs:
            key = what_it_needs(job)
            if key is None or key in tasks:
                continue
            if isinstance(key, Path):
                tasks[key] = key.name, pool.submit(export_artefact, job, plan.heatmap_size, max(plan.batches))
            else:
                label = f"{job.contestant}, {job.threads} thread{'s' if job.threads > 1 else ''}"
                tasks[key] = label, pool.submit(precompile, job, plan.batches, plan.heatmap_size, plan.masked_share)
        for number, (key, (label, future)) in enumerate(tasks.items(), 1):
            try:
                future.result()
                say(f"prepared {number} of {len(tasks)}: {label}")
            except (PortError, OSError, RuntimeError) as error:
                failed[key] = first_line(error)
    return failed


def precompile(job: Job, batches: Sequence[int], side: int, masked_share: float) -> None:
    """Run every batch size once: PyTorch keeps what it compiles on disk, by shape and number of threads."""
    bind, _ = open_peer(job)
    spec = load_model(job.model).spec
    for batch in batches:
        bind(make_poses(spec, job.kind, batch, side, masked_share, seed=batch)).call()


def export_artefact(job: Job, side: int = 64, largest: int = 256) -> None:
    """Write a job's artefact. AOTInductor compiles for the number of threads that PyTorch has.

    Args:
        job: Whose.
        side: Height and width of the heatmaps that an engine takes.
        largest: B that an engine must take.
    """
    backend = job.contestant.backend.removesuffix(GRAPH)
    require(backend)
    import torch

    from port_deploy.export.graph import build_graph

    torch.set_num_threads(job.threads)
    precision: Any = artefact_precision(job)
    graph, path = build_graph(load_model(job.model), job.kind, precision), artefact_file(job)
    if path.suffix == ".engine":
        from port_deploy.export import ExportOptions, export_model
        from port_deploy.export.engine_options import BuildOptions

        build = BuildOptions(flavour="tensorrt")
        batch = (1, min(8, largest), largest)
        options = ExportOptions(("engine",), job.kind, precision, (side, side), batch, float("inf"), build)
        with tempfile.TemporaryDirectory(dir=job.folder) as staging:
            for exported in export_model(job.model, staging, options):
                for file in (exported.path, sidecar_path(exported.path)):
                    shutil.move(file, path.with_name(file.name.replace(exported.path.stem, path.stem)))
        return
    if job.device == "cuda" and path.suffix == ".pt2":
        graph = replace(graph, module=graph.module.cuda(), examples=tuple(e.cuda() for e in graph.examples))
    if path.suffix == ".onnx":
        from port_deploy.export.to_onnx import write_onnx

        write_onnx(graph, job.kind, path)
    elif path.suffix == ".ts":
        from port_deploy.export.to_torchscript import write_torchscript

        write_torchscript(graph, path)
    else:
        from port_deploy.export.to_pt2 import write_pt2

        write_pt2(graph, path)
