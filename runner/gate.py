"""How many containers this runner creates at the same time: more at once only make each one slower.

Attempts that wait go before everything that is made ahead of need, and spares never take the last free place, so that
work finds one at once. First come, first served among equals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.event import Event

from bananas.errors import SandboxStartError

#: A create has deadlines of its own, so this passes only when many wait for an engine in trouble.
GATE_S = 300.0


class Gate:
    """See the module."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._most_spares = max(1, places - 1)
        self._taken = 0
        self._spares = 0
        self._waiting_work: deque[Event] = deque()
        self._waiting_spares: deque[Event] = deque()

    @property
    def taken(self) -> int:
        """Creates under way."""
        return self._taken

    def enter(self, *, is_spare: bool) -> None:
        """Wait for a place and take it; raises SandboxStartError when none comes free in time."""
        turn = Event()
        queue = self._waiting_spares if is_spare else self._waiting_work
        queue.append(turn)
        self._admit()
        if not turn.wait(timeout=GATE_S) and not turn.is_set():
            queue.remove(turn)
            raise SandboxStartError(
                f"no container could be created within {GATE_S:g} s: {self._taken} creates are under way, "
                f"{len(self._waiting_work)} wait; is the engine in trouble?"
            )

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for work, for as long as the block takes; raises as ``enter``."""
        self.enter(is_spare=False)
        try:
            yield
        finally:
            self.leave(is_spare=False)

    def leave(self, *, is_spare: bool) -> None:
        """Give the place up."""
        self._taken -= 1
        self._spares -= is_spare
        self._admit()

    def _admit(self) -> None:
        """Give free places to those who wait; who leaves the queue has its place."""
        while self._taken < self._places and self._waiting_work:
            self._taken += 1
            self._waiting_work.popleft().set()
        while self._taken < self._places and self._spares < self._most_spares and self._waiting_spares:
            self._taken += 1
            self._spares += 1
            self._waiting_spares.popleft().set()
