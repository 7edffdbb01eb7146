"""Moves due jobs (delayed ones and retries) from the schedule to their lanes, at the moment they are due.

On its way it fails jobs that waited longer than their ``expires_after``, within 5 s of that moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gevent.event import Event

from bananas.queue import Queue
from bananas.redis_client import BLOCK_S
from runner.service import PeriodicService

#: Each costs a search through its lane.
_EXPIRE_BATCH = 100


class Promoter(PeriodicService):
    """Sleeps until the next due time that it knows of, at most 5 s; ``hint`` may bring that forward."""

    name = "promoter"

    def __init__(self, on_crash: Callable[[str, BaseException], None], queue: Queue) -> None:
        super().__init__(on_crash, BLOCK_S)
        self._queue = queue
        self._earlier = Event()
        #: Monotonic seconds of the next turn.
        self._wake_at_s = math.inf

    def hint(self, next_due_ms: int | None) -> None:
        """The schedule's next due time, in ms from now, as a step reported it."""
        if next_due_ms is None:
            return
        at_s = time.monotonic() + next_due_ms / 1000
        if at_s < self._wake_at_s:
            self._wake_at_s = at_s
            self._earlier.set()

    def run_once(self) -> float | None:
        """Move what is due; returns seconds until the next."""
        self._wake_at_s = math.inf
        while self._queue.expire(_EXPIRE_BATCH) >= _EXPIRE_BATCH:
            pass
        moved, next_due_ms = self._queue.promote()
        while moved and next_due_ms == 0:
            moved, next_due_ms = self._queue.promote()
        return BLOCK_S if next_due_ms is None else min(BLOCK_S, next_due_ms / 1000)

    def pause(self, seconds: float) -> None:
        """Until due, or until an earlier time that a hint named."""
        self._wake_at_s = min(self._wake_at_s, time.monotonic() + seconds)
        while not self.stopping.is_set():
            self._earlier.clear()
            left_s = self._wake_at_s - time.monotonic()
            if left_s <= 0:
                return
            self._earlier.wait(timeout=left_s)

    def wake(self) -> None:
        """See ``stopping``."""
        self._earlier.set()
