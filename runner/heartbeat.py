"""Keeps the leases of running attempts alive, and ends those attempts whose lease is lost.

Two roles, so that a call to Redis that hangs cannot delay the second: the *heartbeat* extends all leases in one call
three times within a lease; the *fence* ends attempts that could not be extended for 5/6 of a lease, before another
runner may get them. No user code runs in this process, so neither can be held up by it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from bananas import events
from bananas.job import Claim
from bananas.queue import Queue
from runner.executor import Running
from runner.service import PeriodicService

#: A beat that is late by more than this means that something held the event loop.
_LAG_WARN_S = 1.0
#: How long a message waits for its attempt: longer than a claim's answer may take. And how many may wait, in all and
#: for one attempt.
_EARLY_S, _MOST_EARLY, _MOST_OF_ONE = 15.0, 1000, 2


class InFlight:
    """The attempts of this runner whose jobs are leased: running, or with a report still on the way."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[str, int], Running] = {}
        #: What came for attempts that are not here, with its monotonic second; the oldest first.
        self._early: OrderedDict[tuple[str, int], tuple[float, list[Callable[[Running], None]]]] = OrderedDict()

    def add(self, running: Running) -> None:
        """A claim begins; it hears what came for it before."""
        key = (running.claim.id, running.claim.token)
        self._attempts[key] = running
        if key in self._early:
            came_s, messages = self._early.pop(key)
            for message in messages if time.monotonic() - came_s < _EARLY_S else ():
                message(running)

    def tell(self, job_id: str, token: int, message: Callable[[Running], None]) -> None:
        """Call it with the attempt: now, or when that begins. A claim and a message about it come by two connections,
        so the message may be the first of them; one for an attempt that is over finds nobody and is dropped."""
        running = self.get(job_id, token)
        if running is not None:
            message(running)
            return
        _, messages = self._early.pop((job_id, token), (0.0, []))
        self._early[job_id, token] = (time.monotonic(), [*messages, message][-_MOST_OF_ONE:])
        if len(self._early) > _MOST_EARLY:
            self._early.popitem(last=False)

    def remove(self, claim: Claim) -> None:
        """Its settlement arrived, or it was given up. Another attempt with its token stays."""
        running = self.get(claim.id, claim.token)
        if running is not None and running.claim is claim:
            del self._attempts[claim.id, claim.token]

    def get(self, job_id: str, token: int) -> Running | None:
        """The attempt, if it is here."""
        return self._attempts.get((job_id, token))

    def all(self) -> list[Running]:
        """A snapshot."""
        return list(self._attempts.values())

    def __len__(self) -> int:
        return len(self._attempts)


class Heartbeat(PeriodicService):
    """Extends every lease, in one call."""

    name = "heartbeat"

    def __init__(
        self,
        on_crash: Callable[[str, BaseException], None],
        queue: Queue,
        runner: str,
        in_flight: InFlight,
        lease_s: float,
        period_s: float,
        on_lag: Callable[[float], None] = lambda _: None,
    ) -> None:
        """``on_lag`` hears how late each beat began, in seconds."""
        super().__init__(on_crash, period_s)
        self._on_lag = on_lag
        self._queue = queue
        self._runner = runner
        self._in_flight = in_flight
        self._lease_ms = round(lease_s * 1000)

    def run_once(self) -> float | None:
        """One beat."""
        attempts = self._in_flight.all()
        if not attempts:
            return None
        sent_s = time.monotonic()
        flags = self._queue.extend(self._runner, self._lease_ms, [(a.claim.id, a.claim.token) for a in attempts])
        for attempt, stands in zip(attempts, flags, strict=True):
            if stands:
                attempt.lease_seen_s = sent_s
            else:
                attempt.abandon("lease lost")
        return None

    def pause(self, seconds: float) -> None:
        """Measure how late the loop wakes us: it tells whether anything in this process blocks."""
        due = time.monotonic() + seconds
        super().pause(seconds)
        if self.stopping.is_set():
            return
        lag_s = time.monotonic() - due
        self._on_lag(max(0.0, lag_s))
        if lag_s > _LAG_WARN_S:
            events.RUNNER_HELD_UP(lag_s=lag_s)


class Fence(PeriodicService):
    """Ends attempts whose lease may have passed to another runner."""

    name = "fence"

    def __init__(self, on_crash: Callable[[str, BaseException], None], in_flight: InFlight, fence_s: float) -> None:
        super().__init__(on_crash, fence_s / 20)
        self._in_flight = in_flight
        self._fence_s = fence_s

    def run_once(self) -> float | None:
        """One look."""
        now = time.monotonic()
        for attempt in self._in_flight.all():
            if now - attempt.lease_seen_s > self._fence_s and not attempt.abandoned and not attempt.over:
                events.ATTEMPT_FENCED(job=attempt.claim.id)
                attempt.abandon("lease could not be extended")
        return None
