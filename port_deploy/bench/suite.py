# SPDX-License-Identifier: Apache-2.0
"""Runs a plan: verifies everything that takes part, then times it in turns, and answers plain data for JSON.

May use: the other files of bench, verify, backends, weights, errors. Test: tests/test_bench.py.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from port_deploy.backends import native, require, torch_
from port_deploy.bench import machine, startup
from port_deploy.bench.inputs import make_poses
from port_deploy.bench.job import MODEL_NAME, Job
from port_deploy.bench.plan import GRAPH, ROUNDS, Cache, Contestant, Plan, flops_per_pose
from port_deploy.bench.prepare import prepare, what_it_needs
from port_deploy.bench.timing import SWEEP_FACTOR, percentiles
from port_deploy.bench.worker import ContestantFailed, Worker
from port_deploy.errors import BackendUnavailableError, PortError
from port_deploy.sidecar import InputKind
from port_deploy.verify import Verification, make_problems, tolerance_px, verify
from port_deploy.weights import load_model

FORMAT_VERSION = 1
COLD_FACTOR = 1.5
"""Cold blocks last longer: most of their time goes into sweeping."""
PEAK_SECONDS = 0.3
PEER_FACTOR = 2.0
"""Another library's bf16 or fp16 may err by this much more than eager PyTorch's; native must keep verify's table."""

Say = Callable[[str], None]


def measure(plan: Plan, say: Say = lambda message: None) -> dict[str, Any]:
    """Run a plan.

    Args:
        plan: What to measure.
        say: Takes lines about the progress.

    Returns:
        ``machine``, ``versions``, ``compilers``, ``commit``, ``date``, ``model``, ``method``, ``peak`` (FLOP/s of one
        core by precision), ``rows`` (one per backend, precision, batch, threads and cache), ``failures`` (who was
        beyond the tolerance and was not timed), ``skipped`` (who could not take part and why) and, with
        ``plan.extras``, ``decode`` and ``startup``; on a GPU ``gpu``, and with extras ``floor``, ``copy_gb_s`` and
        ``decode_bandwidth``.

    Raises:
        InputError: No such model.
        BackendUnavailableError: There is no oracle (PyTorch), no such device, or nothing that was asked for can run.
    """
    require("torch")  # the oracle
    if plan.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BackendUnavailableError(
                f"PyTorch {torch.__version__} finds no CUDA device: use --device cpu, or install its CUDA build"
            )
    return _Suite(plan, say).run()


class _Suite:
    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan, self.say = plan, say
        self.model = load_model(plan.model)
        self.spec = self.model.spec
        self.kind = cast("InputKind", plan.input)
        self.cache_bytes = machine.last_level_cache_bytes()
        self.flops = flops_per_pose(self.spec.config, self.spec.joints)
        self.rows: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        self.unprepared: dict[Path | Job | None, str] = {}

    def run(self) -> dict[str, Any]:
        plan = self.plan
        self.say("asking the float64 oracle")
        side = plan.heatmap_size
        self.problems = make_problems(self.model, self.kind, (side, side) if self.kind == "heatmaps" else None)
        self.peak = self._measure_peak()
        self.allowed = {dtype: self._allowed_px(dtype) for dtype in {c.dtype for c in plan.contestants}}
        with tempfile.TemporaryDirectory(prefix="port-bench-") as name:
            folder = Path(name)
            file = folder / f"{MODEL_NAME}.safetensors"
            file.write_bytes(self.model.data)
            extras = self._extras(file) if plan.extras else {}
            self.say("exporting and compiling")
            jobs = [self._job(c, threads, folder) for threads in plan.threads for c in plan.contestants]
            self.unprepared = prepare(jobs, plan, self.say)
            for threads in plan.threads:
                self._measure(threads, folder)
        if not self.rows and not self.failures:
            raise BackendUnavailableError(f"nothing could be measured: {self.skipped[0]['reason']}")
        described = machine.describe_machine()
        if plan.device == "cuda":
            from port_deploy.bench.timing_cuda import describe_gpu

            described["gpu"] = startup.in_process(describe_gpu)
        return {
            "format_version": FORMAT_VERSION,
            "machine": {**described, "slug": machine.slug(described)},
            "versions": machine.versions(),
            "compilers": machine.compilers(),
            "commit": machine.commit(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": {
                "name": self.spec.name,
                "skeleton": self.spec.skeleton.name,
                "joints": self.spec.joints,
                "parameters": self.spec.config.parameter_count(),
                "mflop_per_pose": round(self.flops / 1e6, 2),
            },
            "method": {
                "rounds": ROUNDS,
                "seconds": plan.seconds,
                "masked_share": plan.masked_share,
                "heatmap_size": side,
                "swept_bytes": SWEEP_FACTOR * self.cache_bytes,
                "allowed_px": {"native": {d: tolerance_px(d) for d in self.allowed}, "others": self.allowed},
            },
            "peak": self.peak,
            "rows": self.rows,
            "failures": self.failures,
            "skipped": self.skipped,
            **extras,
        }

    def _measure_peak(self) -> dict[str, float]:
        if self.plan.device != "cpu":
            return {}
        found = {}
        for dtype in ("fp32", "bf16"):
            try:
                found[dtype] = round(native.peak_flops(dtype, PEAK_SECONDS) / 1e9, 1)
            except PortError:  # no core, or no bf16: rows then have no share
                continue
        return {f"{dtype}_gflops": value for dtype, value in found.items()}

    def _allowed_px(self, dtype: str) -> float:
        """The error allowed to others than native: twice that of plain PyTorch where it lowers the precision, too.

        How a library lowers its products is its own affair: what is refused is an answer that is wrong.
        """
        if dtype == "fp32":
            return tolerance_px(dtype)
        backend = torch_.load(self.model, device=self.plan.device, precision=dtype)
        return max(tolerance_px(dtype), PEER_FACTOR * verify(backend, self.problems, dtype).max_error_px)

    def _extras(self, file: Path) -> dict[str, Any]:
        plan = self.plan
        if plan.device == "cuda":
            return self._gpu_extras()
        self.say("measuring imports, the first call and the decode alone")
        try:
            require("native-cpu")
        except PortError as error:
            self.say(f"  {error}")
            return {}
        side, share = plan.heatmap_size, plan.masked_share
        return {
            "startup": {
                **startup.measure_import(file, self.spec.joints),
                **startup.in_process(startup.measure_memory, file, side, share),
            },
            "decode": startup.in_process(startup.measure_decode, file, side, share, self.cache_bytes, plan.seconds),
        }

    def _gpu_extras(self) -> dict[str, Any]:
        from port_deploy.bench.timing_cuda import measure_gpu

        plan, spec = self.plan, self.spec
        self.say("measuring the floor of a launch, a copy on the GPU and the decode alone")
        try:
            require("native-cuda")
        except PortError as error:
            self.say(f"  {error}")
            return {}
        return startup.in_process(
            measure_gpu, spec.joints, plan.heatmap_size, spec.codec, spec.temperature, plan.seconds
        )

    def _measure(self, threads: int, folder: Path) -> None:
        plan = self.plan
        label = f"{threads} thread{'s' if threads > 1 else ''}"
        ready = [job for c in plan.contestants if self._ready(job := self._job(c, threads, folder))]
        self.say(f"{label}: loading {', '.join(str(job.contestant) for job in ready)}")
        with ExitStack() as stack:
            workers = [stack.enter_context(Worker(job)) for job in ready]
            workers = [w for w in workers if self._alive(w.job, w.ready)]
            for batch in plan.batches:
                found = self._verified(workers, batch, label)
                taking_part = [w for w in workers if w in found]
                for cache, batches, factor in (
                    ("warm", plan.warm, 1.0),
                    ("cold", plan.cold, COLD_FACTOR),
                    ("graph", plan.graph, 1.0),
                ):
                    timed = taking_part if cache != "graph" else [w for w in taking_part if _in_graph(w.job)]
                    if batch in batches and timed:
                        self.say(f"{label}: timing B = {batch}, {cache}")
                        self._time(timed, found, batch, cast("Cache", cache), factor * plan.seconds / ROUNDS)

    def _verified(self, workers: list[Worker], batch: int, label: str) -> dict[Worker, Verification]:
        """Those that agree with the oracle at this batch size; those that crash leave ``workers``."""
        poses = make_poses(self.spec, self.kind, batch, self.plan.heatmap_size, self.plan.masked_share, seed=batch)
        found: dict[Worker, Verification] = {}
        for worker in list(workers):
            contestant = worker.job.contestant
            self.say(f"{label}: verifying {contestant} at B = {batch}")
            try:
                allowed = None if contestant.backend.startswith("native-") else self.allowed[contestant.dtype]
                answer = worker.bind(poses, self.problems, self.spec, allowed)
            except ContestantFailed as failure:
                self._skip(worker.job, str(failure))
                workers.remove(worker)
                continue
            if answer.passed:
                found[worker] = answer
                continue
            self.say(f"  {contestant}: {answer.summary()}")
            self.failures.append(
                {
                    **self._key(worker.job, batch),
                    "max_error_px": answer.max_error_px,
                    "allowed_px": answer.tolerance_px,
                    "summary": answer.summary(),
                }
            )
        return found

    def _time(
        self, workers: Sequence[Worker], found: dict[Worker, Verification], batch: int, cache: Cache, seconds: float
    ) -> None:
        times: dict[Worker, list[int]] = {w: [] for w in workers}
        for turn in range(ROUNDS):
            for position in range(len(workers)):
                worker = workers[(position + turn) % len(workers)]
                times[worker] += worker.block(cache, seconds)
        for worker in workers:
            row: dict[str, Any] = {
                **self._key(worker.job, batch),
                "cache": cache,
                **percentiles(times[worker]),
                "max_error_px": found[worker].max_error_px,
                "calls": len(times[worker]),
                "detail": worker.detail,
            }
            gflops = self.flops * batch / row["p50_us"] / 1e3
            peak = self.peak.get(f"{worker.job.contestant.dtype}_gflops")
            row["peak_share"] = round(gflops / (peak * worker.job.threads), 3) if peak else None
            self.rows.append(row)

    def _key(self, job: Job, batch: int) -> dict[str, Any]:
        return {
            "backend": job.contestant.backend,
            "device": job.device,
            "dtype": job.contestant.dtype,
            "input": job.kind,
            "batch": batch,
            "threads": job.threads,
        }

    def _alive(self, job: Job, act: Callable[[], None]) -> bool:
        try:
            act()
        except ContestantFailed as failure:
            self._skip(job, str(failure))
            return False
        return True

    def _skip(self, job: Job, reason: str) -> None:
        c = job.contestant
        if self.plan.strict:
            raise BackendUnavailableError(f"{c} cannot be timed: {reason}")
        self.skipped.append({"backend": c.backend, "dtype": c.dtype, "threads": job.threads, "reason": reason})
        self.say(f"  {c} cannot take part: {reason}")

    def _ready(self, job: Job) -> bool:
        """Whether a job can go on."""
        reason = self.unprepared.get(what_it_needs(job))
        if reason is not None:
            self._skip(job, reason)
        return reason is None

    def _job(self, contestant: Contestant, threads: int, folder: Path) -> Job:
        return Job(contestant, self.kind, threads, self.plan.device, folder, self.cache_bytes)


def _in_graph(job: Job) -> bool:
    """Whether a call's time inside a CUDA graph is measured: of what is captured anyway."""
    return job.contestant.backend.endswith(GRAPH)
