"""Keeps Redis and this host tidy: records whose time is over, containers of runners that are gone, the bundle cache."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bananas.errors import EngineUnavailable
from bananas.queue import Queue
from runner.bundles import BundleCache
from runner.host import Host
from runner.service import PeriodicService

log = logging.getLogger(__name__)

_PERIOD_S = 30.0
_BATCH = 1000


class Janitor(PeriodicService):
    """One round every 30 s."""

    name = "janitor"

    def __init__(
        self, on_crash: Callable[[str, BaseException], None], queue: Queue, host: Host, bundles: BundleCache
    ) -> None:
        super().__init__(on_crash, _PERIOD_S)
        self._queue = queue
        self._host = host
        self._bundles = bundles

    def run_once(self) -> float | None:
        """One round; comes back at once when a batch was full."""
        self._bundles.prune()
        try:
            self._host.sweep()
        except EngineUnavailable as e:
            log.warning("janitor: %s", e)
        return 0.0 if self._queue.sweep(_BATCH) >= _BATCH else None
