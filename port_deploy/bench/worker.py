# SPDX-License-Identifier: Apache-2.0
"""A process of its own for every contestant: thread pools, allocators and imports of the others cannot disturb it.

While others have their turn it waits for its next order on a pipe. May use: peers, timing, verify, errors.
Test: tests/test_bench.py.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np

from port_deploy.backends.base import FloatArray, HostBuffers
from port_deploy.bench.inputs import Poses
from port_deploy.bench.job import Bind, Job
from port_deploy.bench.peers import open_peer
from port_deploy.bench.plan import Cache
from port_deploy.bench.timing import Sweeper, cold_block, warm_block
from port_deploy.config import ModelSpec
from port_deploy.errors import PortError
from port_deploy.verify import Problem, Verification, verify

ANSWER_TIMEOUT_S = 300.0
SETTLE_CALLS = 10
"""TorchScript and torch.compile specialise on the first calls."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ContestantFailed(Exception):  # noqa: N818 - an event of the measurement, not an error of the caller's
    """A worker could not do what it was asked; the message is its reason, ``details`` its traceback."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.details = details


class Worker:
    """The parent's handle of one process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        with thread_limit(job.threads):
            self._process.start()
        theirs.close()
        self.detail = ""

    def ready(self) -> None:
        """Wait until the backend is loaded."""
        self.detail = str(self._receive())

    def bind(
        self, poses: Poses, problems: Sequence[Problem], spec: ModelSpec, allowed_px: float | None
    ) -> Verification:
        """Compare with the oracle at this batch size, and take poses for the calls to come."""
        found: Verification = self._ask("bind", (poses, problems, spec, allowed_px))
        return found

    def block(self, cache: Cache, seconds: float) -> list[int]:
        """A turn: times of its calls in ns."""
        times: list[int] = self._ask("block", (cache, seconds))
        return times

    def _ask(self, order: str, argument: Any) -> Any:
        try:
            self._pipe.send((order, argument))
        except OSError as error:
            raise ContestantFailed(f"its process died ({error})") from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            if not self._pipe.poll(ANSWER_TIMEOUT_S):
                raise ContestantFailed(f"no answer within {ANSWER_TIMEOUT_S:.0f} s")
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise ContestantFailed(f"its process died (exit code {self._process.exitcode})") from error
        if kind == "failed":
            raise ContestantFailed(*value)
        return value

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(("quit", None))
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class FixedBatch:
    """A bound peer as a backend that can be verified: poses go through in batches of the size that will be timed.

    Args:
        bind: Of the peer.
        job: What it is.
        spec: Of the model.
        batch: B.
    """

    takes_joints = takes_heatmaps = True
    gives_std = False

    def __init__(self, bind: Bind, job: Job, spec: ModelSpec, batch: int, detail: str = "") -> None:
        self.name, self.detail, self.spec = job.contestant.backend, detail, spec
        self._bind, self._kind, self._batch = bind, job.kind, batch

    def refine(self, joints: FloatArray, confidence: FloatArray, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says; the last pose fills a batch up."""
        for start in range(0, len(joints), self._batch):
            stop = min(start + self._batch, len(joints))
            rows = np.arange(start, start + self._batch).clip(max=stop - 1)
            bound = self._bind(Poses(self._kind, joints[rows], confidence[rows], threshold))
            bound.call()
            for target, got in zip((out.joints, out.confidence, out.mask), bound.read(), strict=True):
                target[start:stop] = got[: stop - start]

    def run(self, heatmaps: Any, affine: FloatArray | None, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says."""
        assert affine is not None  # every problem of verify has one
        self.refine(heatmaps, affine, threshold, out)


@contextlib.contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Environment of a child process whose libraries are to use that many threads."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and ends this process in good order
    try:
        bind, detail = open_peer(job)
        pipe.send(("ready", detail))
        _answer_orders(pipe, job, bind, detail)
    except EOFError:
        return  # the parent is gone
    except PortError as error:
        pipe.send(("failed", (str(error), "")))
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
        pipe.send(("failed", (reason, traceback.format_exc())))


def _answer_orders(pipe: Connection, job: Job, bind: Bind, detail: str) -> None:
    sweep: Sweeper | None = None
    bound = None
    while True:
        order, argument = pipe.recv()
        if order == "quit":
            return
        if order == "bind":
            poses, problems, spec, allowed_px = argument
            backend = FixedBatch(bind, job, spec, len(poses.first), detail)
            found = verify(backend, problems, job.contestant.dtype, allowed_px)
            bound = bind(poses)
            for _ in range(SETTLE_CALLS):
                bound.call()
            pipe.send(("answer", found))
        else:
            assert bound is not None  # the suite binds before it times
            cache, seconds = argument
            if cache == "graph":
                from port_deploy.bench.timing_cuda import graph_block

                assert bound.queue is not None  # whatever runs on a GPU has one
                pipe.send(("times", graph_block(bound.queue, seconds)))
            elif cache == "cold":
                sweep = sweep or Sweeper(job.cache_bytes)
                pipe.send(("times", cold_block(bound.call, sweep, seconds)))
            else:
                pipe.send(("times", warm_block(bound.call, seconds)))
