# SPDX-License-Identifier: Apache-2.0
"""A build's progress on stderr: a bar where it is a terminal, a line now and then where it is a log.

May use: cli.common, rich where it is installed. Test: tests/test_engine_progress.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from port_deploy.cli.common import say
from port_deploy.export.engine_progress import Progress

LINE_SECONDS = 10.0
"""Between two lines in a log: a build that is over before shows none."""


class Lines:
    """Progress as lines, for logs.

    Args:
        what: What is being done.
        every_seconds: At least that long between two lines.
    """

    def __init__(self, what: str, every_seconds: float = LINE_SECONDS) -> None:
        self._what, self._every = what, every_seconds
        self._last = time.monotonic()

    def step(self, what: str, fraction: float) -> None:
        """A line where the last one is old enough."""
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            say(f"{self._what}: {fraction:.0%}, {what}")

    def note(self, text: str) -> None:
        """A line."""
        say(text)


@contextmanager
def build_progress(what: str) -> Iterator[Progress]:
    """Who shows the progress of a build, for as long as the block lasts."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield Lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bars = Bars(*columns, TextColumn("{task.fields[phase]}"), console=Console(stderr=True), transient=True)

    class Bar:
        def __init__(self) -> None:
            self.task = bars.add_task(what, total=1.0, visible=False, phase="")

        def step(self, what: str, fraction: float) -> None:
            bars.update(self.task, completed=fraction, phase=what, visible=True)

        def note(self, text: str) -> None:
            bars.console.print(text, markup=False, highlight=False)

    with bars:
        yield Bar()
