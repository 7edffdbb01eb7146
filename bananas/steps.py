"""Long steps of a command, as those that do the work see them; ``bananas.cli.bars`` shows them on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

#: Tells that so many more bytes of a step are done.
Advance = Callable[[int], None]


class Step(Protocol):
    """Begins a step."""

    def __call__(self, what: str, total_bytes: int | None = None) -> AbstractContextManager[Advance]:
        """``what`` is for people; without a total nobody knows how much there is to do."""
        ...


@contextmanager
def no_step(what: str, total_bytes: int | None = None) -> Iterator[Advance]:  # noqa: ARG001 - those of a Step
    """A step that nobody looks at."""
    yield lambda _: None
