"""When the upkeep of sandboxes has something to do next: it sleeps until then, so idle runners do nothing; and when
what failed is to be tried again.
"""

from __future__ import annotations

import math

from gevent.event import Event

from bananas.protocols import Clock


class Alarm:
    """One sleeper, any number of those who may wake it earlier."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at_s = math.inf
        self._earlier = Event()

    def by(self, at_s: float) -> None:
        """Have the sleeper look at this monotonic second of the clock, or before. Cheap when it would anyway."""
        if at_s < self._at_s:
            self._at_s = at_s
            self._earlier.set()

    def sleep(self, longest_s: float) -> None:
        """Until the time that was set, or ``longest_s`` seconds; then the alarm is off until it is set again."""
        self.by(self._clock.mono_s() + longest_s)
        while (left_s := self._at_s - self._clock.mono_s()) > 0:
            self._earlier.clear()
            self._earlier.wait(timeout=left_s)
        self._at_s = math.inf


class Setbacks:
    """What could not be made ahead of need, and until when it waits: longer with each failure in a row."""

    WAITS_S = (1.0, 5.0, 30.0, 60.0)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: What → how often in a row, and the second of the clock from which on it may be tried again.
        self._failed: dict[object, tuple[int, float]] = {}

    def failed(self, what: object) -> float:
        """It failed; returns the second of the clock at which to try again."""
        times = self._failed.get(what, (0, 0.0))[0]
        again_s = self._clock.mono_s() + self.WAITS_S[min(times, len(self.WAITS_S) - 1)]
        self._failed[what] = (times + 1, again_s)
        return again_s

    def succeeded(self, what: object) -> None:
        """It works."""
        self._failed.pop(what, None)

    def may_try(self, what: object) -> bool:
        """False while it waits."""
        return self._failed.get(what, (0, 0.0))[1] <= self._clock.mono_s()

    def clear(self) -> None:
        """Everything is different now."""
        self._failed.clear()

    def next_s(self) -> float | None:
        """Seconds until the next one may be tried again; None when nothing waits."""
        now_s = self._clock.mono_s()
        return min((at_s - now_s for _, at_s in self._failed.values() if at_s > now_s), default=None)
