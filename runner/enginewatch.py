"""Whether the engine answers. While it does not, this runner takes no jobs: they stay in the queue, for other runners.

Asks the engine every few seconds, and at once when a sandbox could not be started (``doubt``): that is how the executor
tells an engine that is away from one that refuses. Says once when it goes and once when it is back. Never starts or
stops anything; what is running goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gevent.lock import BoundedSemaphore

from bananas import events
from bananas.errors import EngineUnavailable
from runner.service import PeriodicService

PERIOD_S = 2.0
#: While it is away.
AWAY_PERIOD_S = 0.5


class EngineWatch(PeriodicService):
    """See the module."""

    name = "engine"

    def __init__(
        self,
        on_crash: Callable[[str, BaseException], None],
        ping: Callable[[], None],
        on_back: Callable[[], None],
    ) -> None:
        """``ping`` raises EngineUnavailable when there is no answer; ``on_back`` is called when there is one again."""
        super().__init__(on_crash, PERIOD_S)
        self._ping = ping
        self._on_back = on_back
        self._turn = BoundedSemaphore(1)
        #: Monotonic seconds at which the last ping that is over began, and since when none was answered.
        self._pinged_s = 0.0
        self._away_since_s: float | None = None
        #: Seconds that the last answer took; None before the first.
        self.ping_s: float | None = None

    @property
    def answers(self) -> bool:
        """What is known; asks nobody."""
        return self._away_since_s is None

    def doubt(self) -> bool:
        """Something failed: does the engine answer now? Many who ask at a time cost one ping."""
        if self.answers:
            self._look()
        return self.answers

    def run_once(self) -> float | None:
        """One ping."""
        self._look()
        return PERIOD_S if self.answers else AWAY_PERIOD_S

    def _look(self) -> None:
        asked_s = time.monotonic()
        with self._turn:
            if self._pinged_s >= asked_s:
                return
            began_s = time.monotonic()
            problem = None
            try:
                self._ping()
                self.ping_s = time.monotonic() - began_s
            except EngineUnavailable as e:
                problem = e
            self._pinged_s = began_s
            self._note(problem)

    def _note(self, problem: EngineUnavailable | None) -> None:
        if problem is not None and self._away_since_s is None:
            self._away_since_s = time.monotonic()
            events.ENGINE_AWAY(error=problem)
        elif problem is None and self._away_since_s is not None:
            away_s = time.monotonic() - self._away_since_s
            self._away_since_s = None
            events.ENGINE_BACK(away_s=away_s)
            self._on_back()
