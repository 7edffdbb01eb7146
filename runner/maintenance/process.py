"""``bananas runner --only maintenance``: a process that has the maintenance roles and nothing else of a runner.

It needs no engine and takes no jobs, so schedules fire, delayed jobs fall due, leases run out and callbacks are told
even while there is no runner. It is in no list of runners, since no pool is served by it.
"""

from __future__ import annotations

from typing import Final

from gevent.event import Event

from bananas import events
from bananas.health import Health
from bananas.notify import Notifier
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.settings import Settings
from runner.maintenance.roles import MaintenanceRoles
from runner.service import Every, GreenletService

#: For a role to end its turn.
_EXIT_S: Final = 5.0


class MaintenanceProcess:
    """One such process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connections = Connections(settings.redis_url)
        self._notifier = Notifier()
        self._stop = Event()
        self._crash: str | None = None

    def run(self) -> int:
        """Start, serve until ``stop``; returns the exit code. Raises BananasError when it cannot start."""
        self._connections.ping()
        for warning in Health(self._connections).require():
            events.RUNNER_WARNED(warning=warning)
        queue = Queue(self._connections)
        services: list[GreenletService] = MaintenanceRoles(self._on_crash, self._settings, self._connections, queue).all
        if self._notifier.watchdog_s:
            services.append(Every(self._on_crash, "watchdog", self._notifier.watchdog_s / 3, self._notifier.alive))
        for service in services:
            service.start()
        events.MAINTENANCE_READY()
        print("maintenance ready", flush=True)
        self._notifier.ready("looks after the queue")
        self._stop.wait()
        self._notifier.stopping()
        for service in reversed(services):
            service.stop(_EXIT_S)
        self._connections.close()
        if self._crash:
            events.RUNNER_CRASHED(error=self._crash)
            return 1
        return 0

    def stop(self) -> None:
        """Begin the shutdown; from a signal handler too."""
        self._stop.set()

    def _on_crash(self, role: str, error: BaseException) -> None:
        events.ROLE_DIED(error, role=role)
        self._crash = f"{role} died of {type(error).__name__}: {error}"
        self._stop.set()
