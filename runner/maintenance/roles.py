"""The roles that look after the queue for everybody: they need Redis and nothing of a runner's own machine.

Every runner has them, since none of them minds another; a process may have nothing else
(``runner.maintenance.process``). Each transition is a script in Redis, so it is made once however many look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bananas import events
from bananas.callbacks import Callbacks
from bananas.errors import ConfigError
from bananas.health import Health
from bananas.leftovers import Leftovers
from bananas.queue import Queue
from bananas.redis_client import Connections, safe_url
from bananas.schedules import Schedules
from bananas.secrets import SecretBox
from bananas.settings import Settings
from runner.maintenance.callbacks import CallbackTeller
from runner.maintenance.janitor import Janitor
from runner.maintenance.promoter import Promoter
from runner.maintenance.reaper import Reaper
from runner.maintenance.scheduler import Scheduler
from runner.service import Every, GreenletService
from runner.webhook import Sender

_FORMAT_S: Final = 5.0

OnCrash = Callable[[str, BaseException], None]


class MaintenanceRoles:
    """Made, not started; ``all`` is the order to start them in."""

    def __init__(self, on_crash: OnCrash, settings: Settings, connections: Connections, queue: Queue) -> None:
        self._health = Health(connections)
        self._url = connections.url
        #: A runner's worker tells it when the next job is due.
        self.promoter = Promoter(on_crash, queue)
        self.all: list[GreenletService] = [
            *_callbacks(on_crash, settings, connections),
            self.promoter,
            Scheduler(on_crash, Schedules(connections)),
            Reaper(on_crash, queue, settings.lease_s, settings.reap_s),
            Janitor(on_crash, queue, Leftovers(connections)),
            Every(on_crash, "format", _FORMAT_S, self._check_format),
        ]

    def _check_format(self) -> None:
        """A newer release that lays its data out anew ends the older processes."""
        if unknown := self._health.unknown_format():
            raise ConfigError(f"Redis at {safe_url(self._url)} cannot be used any more: {unknown}")


def _callbacks(on_crash: OnCrash, settings: Settings, connections: Connections) -> list[GreenletService]:
    """Who tells ends of jobs; nobody here without the key that signs them."""
    box = SecretBox.from_settings(settings)
    if box is None:
        events.RUNNER_NO_CALLBACKS()
        return []
    return [CallbackTeller(on_crash, Callbacks(connections), Sender(settings.callback_allow), box.callback_keys)]
