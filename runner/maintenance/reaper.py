"""Returns jobs to their lanes whose lease has run out: their runner is gone.

After a Redis outage it waits one lease: live runners could not extend theirs meanwhile, and get the chance to do so.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bananas import events
from bananas.queue import Queue
from runner.service import PeriodicService


class Reaper(PeriodicService):
    """Looks every sixth of a lease."""

    name = "reaper"

    def __init__(
        self, on_crash: Callable[[str, BaseException], None], queue: Queue, lease_s: float, period_s: float
    ) -> None:
        super().__init__(on_crash, period_s)
        self._queue = queue
        self._lease_s = lease_s
        #: Monotonic seconds; nothing is reaped before.
        self._not_before_s = 0.0
        self._uptime_known = False

    def unavailable(self) -> None:
        """Redis is away: give its runners one lease from now."""
        self._not_before_s = time.monotonic() + self._lease_s
        self._uptime_known = False

    def run_once(self) -> float | None:
        """Reap, unless Redis was away lately."""
        if not self._uptime_known:
            # Redis may have restarted just before this runner did, or so quickly that no turn of ours failed.
            left_s = self._lease_s - self._queue.server_uptime_s()
            self._not_before_s = max(self._not_before_s, time.monotonic() + left_s)
            self._uptime_known = True
        if time.monotonic() < self._not_before_s:
            return None
        returned, poisoned = self._queue.reap()
        if returned or poisoned:
            events.LEASES_REAPED(returned=returned, poisoned=poisoned)
        return 0.0 if returned + poisoned >= 500 else None
