"""The contract of a runner's background roles: one greenlet, a start that returns when ready, a stop with a deadline.

A role that dies of an unexpected exception is not restarted in secret: ``on_crash`` ends the whole runner, loudly, and
its supervisor (systemd, Compose, ``bananas up``) starts a fresh one. Its jobs come back through their leases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from bananas import events
from bananas.errors import RedisUnavailable


class GreenletService:
    """Base of the roles; subclasses implement ``run`` and look at ``stopping``."""

    name = "service"

    def __init__(self, on_crash: Callable[[str, BaseException], None]) -> None:
        self._on_crash = on_crash
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self.stopping = Event()

    def start(self) -> None:
        """Start the greenlet; a second start does nothing."""
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._guarded)

    def stop(self, deadline_s: float) -> None:
        """Ask it to end and wait up to ``deadline_s`` seconds; then it is killed. Idempotent."""
        self.stopping.set()
        self.wake()
        if self._greenlet is not None:
            self._greenlet.join(timeout=deadline_s)
            self._greenlet.kill(block=False)

    def wake(self) -> None:
        """Interrupt whatever ``run`` waits for, so that it sees ``stopping``. For subclasses that wait elsewhere."""

    def run(self) -> None:
        """The role itself; returns after ``stopping`` is set."""
        raise NotImplementedError

    def _guarded(self) -> None:
        try:
            self.run()
        except Exception as e:  # noqa: BLE001 - the top of a greenlet: reported, then the runner ends
            self._on_crash(self.name, e)


class PeriodicService(GreenletService):
    """Calls ``run_once`` every ``period_s`` seconds. An unreachable Redis is waited out, and counted from its end."""

    def __init__(self, on_crash: Callable[[str, BaseException], None], period_s: float) -> None:
        super().__init__(on_crash)
        self.period_s = period_s

    def run_once(self) -> float | None:
        """One turn; may return the seconds until the next one instead of ``period_s``."""
        raise NotImplementedError

    def run(self) -> None:
        """Turn after turn until stopped."""
        while not self.stopping.is_set():
            pause_s: float | None
            try:
                pause_s = self.run_once()
            except RedisUnavailable as e:
                events.ROLE_WAITS(role=self.name, error=e)
                self.unavailable()
                pause_s = min(1.0, self.period_s)
            self.pause(self.period_s if pause_s is None else pause_s)

    def unavailable(self) -> None:
        """Called when a turn failed because Redis did not answer."""

    def pause(self, seconds: float) -> None:
        """Wait between turns."""
        self.stopping.wait(timeout=seconds)


class Every(PeriodicService):
    """Calls a function periodically."""

    def __init__(
        self, on_crash: Callable[[str, BaseException], None], name: str, period_s: float, call: Callable[[], Any]
    ) -> None:
        super().__init__(on_crash, period_s)
        self.name = name
        self._call = call

    def run_once(self) -> float | None:
        """One call."""
        self._call()
        return None
