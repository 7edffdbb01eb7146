"""Counts the requests of one gateway process, by call and status, how long they took, and what was logged of trouble.
``/metrics`` tells the sums.

Counting is a few additions in memory; every other second what is new goes to Redis, where the counts of all processes
meet. A process that is killed takes with it what it had not told yet, two seconds of it at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import gevent
from gevent.event import Event

from bananas import logs
from bananas.errors import RedisUnavailable
from bananas.metrics import Durations

_TELL_S: Final = 2.0
#: What a path is called that no call is at.
_NO_CALL: Final = "none"


class Traffic:
    """See the module. Made after the fork."""

    def __init__(self, tell: Callable[[Counter[str]], None]) -> None:
        """``tell`` adds counts to those in Redis; raises RedisUnavailable."""
        self._tell = tell
        #: By call and status; and what could not be told, by field.
        self._answers: Durations[tuple[str, int]] = Durations()
        self._counts: Counter[str] = Counter()
        self._has_news = Event()
        self._teller: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Tell from now on, whenever there is something new."""
        self._teller = gevent.spawn(self._run)

    def stop(self) -> None:
        """Tell the last, if Redis answers, and end."""
        if self._teller is not None:
            self._teller.kill(block=False)
            self._teller = None
        try:
            self.tell()
        except RedisUnavailable:
            self._counts.clear()  # the process ends, and nobody is there to ask for them

    def tell(self) -> None:
        """Take what is new to Redis; raises RedisUnavailable, and keeps it then."""
        counts, self._counts = self._counts, Counter()
        for (call, status), by_bucket, sum_us in self._answers.take():
            counts[f"http:{call}:{status}"] += sum(by_bucket.values())
            counts[f"took_us:{call}"] += sum_us
            counts.update({f"took:{call}:{bucket}": n for bucket, n in by_bucket.items()})
        for name, number in logs.told.items():
            counts[f"event:{name}"] += number
        logs.told.clear()
        if not counts:
            return
        try:
            self._tell(counts)
        except RedisUnavailable:
            self._counts.update(counts)
            raise

    def count(self, call: str | None, status: int, took_ms: float) -> None:
        """One more request, also when it was refused; ``call`` is None where no call is."""
        self._answers.add((call or _NO_CALL, status), took_ms)
        if not self._has_news.is_set():
            self._has_news.set()

    def _run(self) -> None:
        while True:
            self._has_news.wait()
            self._has_news.clear()
            gevent.sleep(_TELL_S)  # so that one message holds what came meanwhile
            try:
                self.tell()
            except RedisUnavailable:
                self._has_news.set()  # the calls themselves tell of it
