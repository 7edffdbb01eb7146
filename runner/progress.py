"""Brings what attempts tell of their progress into their records: the latest of each, in one call for all of them.

At most one call is made per ``PERIOD_S``, so none costs more than that however often its code tells. It is apart from
the worker, whose results must not wait for it; what it has not brought by the end of an attempt goes along with the
settlement. So nothing is lost when Redis or this process stalls, and nothing told by an attempt that lost its lease
is kept. The executor is its caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gevent.event import Event

from bananas import events
from bananas.errors import RedisUnavailable
from bananas.queue import Queue
from bananas.redis_client import BLOCK_S
from runner.executor import Running
from runner.service import GreenletService

PERIOD_S: Final = 0.5


class ProgressTeller(GreenletService):
    """See the module. Holds no more than one entry per attempt in flight."""

    name = "progress"

    def __init__(
        self, on_crash: Callable[[str, BaseException], None], queue: Queue, runner: str, period_s: float = PERIOD_S
    ) -> None:
        super().__init__(on_crash)
        self._queue = queue
        self._runner = runner
        self._period_s = period_s
        self._told: dict[tuple[str, int], Running] = {}
        self._wake = Event()

    def told(self, running: Running) -> None:
        """An attempt has something new in ``running.progress``. Never waits."""
        self._told[running.claim.id, running.claim.token] = running
        self._wake.set()

    def wake(self) -> None:
        """Look whether to stop."""
        self._wake.set()

    def run(self) -> None:
        """Call after call, as long as there is something to tell."""
        is_away = False
        while not self.stopping.is_set():
            if not self._wake.wait(timeout=BLOCK_S):
                continue
            self._wake.clear()
            try:
                self._bring()
                is_away = False
            except RedisUnavailable as e:
                if not is_away:
                    events.PROGRESS_WAITS(error=e)
                is_away = True
            self.stopping.wait(timeout=self._period_s)

    def _bring(self) -> None:
        told, self._told = self._told, {}
        # The settlement of one that is over has it.
        items = [(r, text) for r in told.values() if not r.over and (text := r.untold) is not None]
        try:
            flags = self._queue.progress(self._runner, [(r.claim.id, r.claim.token, text) for r, text in items])
        except RedisUnavailable:
            self._told = {**told, **self._told}
            self._wake.set()
            raise
        for (running, text), is_kept in zip(items, flags, strict=True):
            if is_kept:
                running.progress_kept = text
