# SPDX-License-Identifier: Apache-2.0
"""What a build of minutes owes the one who waits: how far it is, and an end when asked for one.

TensorRT reports nested phases from whatever thread it likes, and calls Python back only there: an interrupt would
wait for the end of the build. So the build runs in a thread of its own, and the caller's thread waits, hears the
interrupt, and has the build cancelled at its next step.
May use: nothing of port_deploy. Test: tests/test_engine_progress.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""How long an interrupt waits for the library to stop before it leaves the build behind."""


class Progress(Protocol):
    """Who shows how far a build is. Called from any thread, one at a time."""

    def step(self, what: str, fraction: float) -> None:
        """The innermost phase by its name, and how much of the whole is done, 0..1, never falling."""
        ...

    def note(self, text: str) -> None:
        """One line that a reader should see."""
        ...


class Silent:
    """Shows nothing."""

    def step(self, what: str, fraction: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class Monitor:
    """The state of a build, and the switch that ends it. `attach` gives the library its own kind of monitor."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress or Silent()
        self._lock = threading.Lock()
        self._phases: list[_Phase] = []  # open ones, outermost first
        self._shown = 0.0
        self.cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases.append(_Phase(name, parent, max(steps, 1)))
            self._show()

    def step(self, name: str, index: int) -> bool:
        """A step of a phase is done; False asks the library to stop."""
        with self._lock:
            for phase in self._phases:
                if phase.name == name:
                    phase.done = max(phase.done, index + 1)
            self._show()
            return not self.cancelled

    def finish(self, name: str) -> None:
        """A phase ends, and those inside it."""
        with self._lock:
            at = next((i for i, phase in enumerate(self._phases) if phase.name == name), None)
            if at is not None:
                del self._phases[at:]

    def fraction(self) -> float:
        """How much is done: every step of a phase counts alike, an open phase inside it is a part of a step."""
        return self._fraction(self._phases[0]) if self._phases else 0.0

    def _fraction(self, phase: _Phase) -> float:
        inside = sum(self._fraction(p) for p in self._phases if p.parent == phase.name)
        return min((phase.done + min(inside, 1.0)) / phase.steps, 1.0)

    def _show(self) -> None:
        self._shown = max(self._shown, self.fraction())
        self._progress.step(self._phases[-1].name if self._phases else "", self._shown)

    def attach(self, library: Any, config: Any) -> Any:
        """Give a builder configuration a monitor of the library's own type; the caller keeps it alive."""
        state = self

        class Adapter(library.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                library.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                state.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return state.step(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                state.finish(phase_name)

        adapter = Adapter()
        config.progress_monitor = adapter
        return adapter


def run_cancellable(work: Callable[[], T], monitor: Monitor) -> T:
    """Run ``work`` in a thread of its own; an interrupt of the caller cancels it and is raised when it has stopped.

    A second interrupt, or PATIENCE_SECONDS, leaves the thread behind; it holds nothing but memory.

    Raises:
        KeyboardInterrupt: The caller was interrupted.
        Exception: Whatever ``work`` raises.
    """
    answers: list[T] = []
    errors: list[BaseException] = []
    over = threading.Event()  # not join(): interrupted, CPython 3.11's takes the thread for ended

    def body() -> None:
        try:
            answers.append(work())
        except BaseException as error:  # carried to the caller's thread
            errors.append(error)
        finally:
            over.set()

    threading.Thread(target=body, name="port-engine-build", daemon=True).start()
    try:
        while not over.wait(0.2):
            pass
    except BaseException:
        monitor.cancelled = True
        over.wait(PATIENCE_SECONDS)
        raise
    if errors:
        raise errors[0]
    return answers[0]
