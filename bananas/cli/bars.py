"""Progress of long steps on stderr: a bar for each while it runs; nothing where stderr is no terminal.

Called by ``bananas deploy`` and by ``python -m runner images build``. What is done is told in lines of its own, on a
terminal or not; the bars leave nothing behind.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bananas.steps import Advance, no_step

if TYPE_CHECKING:
    from rich.progress import Progress


class Bars:
    """The steps of one command; a context manager that takes the bars away at its end."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._progress = _progress()

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, line: str) -> None:
        """One line, above the bars."""
        if self._progress is None:
            print(line, file=sys.stderr)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def step(self, what: str, total_bytes: int | None = None) -> AbstractContextManager[Advance]:
        """A bar until the context ends; without a total it only shows that something happens, and for how long."""
        return no_step(what, total_bytes) if self._progress is None else _bar(self._progress, what, total_bytes)


@contextmanager
def _bar(progress: Progress, what: str, total_bytes: int | None) -> Iterator[Advance]:
    task = progress.add_task(what.replace("[", r"\["), total=total_bytes)
    try:
        yield lambda count: progress.advance(task, count)
    finally:
        progress.remove_task(task)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Bytes(DownloadColumn):
        """Nothing for a step that has no bytes."""

        def render(self, task: Task) -> Text:
            return super().render(task) if task.total is not None or task.completed else Text("")

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), Bytes(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
