"""Greenlets that take on one piece of work after another. The worker runs each attempt in one.

A greenlet has its frames in memory of its own, which the interpreter takes from the kernel and gives back; for a short
attempt that costs several times what switching to it does.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent import get_hub
from gevent.hub import Waiter


class Crew:
    """As many greenlets as pieces of work ever ran at once; each waits for the next when it has none."""

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        """``on_crash`` hears of what a piece of work raised; its greenlet is gone then."""
        self._on_crash = on_crash
        self._resting: list[Waiter[Callable[[], None]]] = []

    def run(self, work: Callable[[], None]) -> None:
        """Have it run soon, in a greenlet of its own; returns at once."""
        if self._resting:
            get_hub().loop.run_callback(self._resting.pop().switch, work)
        else:
            gevent.spawn(self._live, [work])

    def _live(self, first: list[Callable[[], None]]) -> None:
        # Nothing keeps a piece of work that is done: neither the greenlet's arguments nor a name in here.
        try:
            first.pop()()
            while True:
                rest: Waiter[Callable[[], None]] = Waiter()
                self._resting.append(rest)
                rest.get()()
        except Exception as e:  # noqa: BLE001 - the top of a greenlet: reported, then the runner ends
            self._on_crash(e)
