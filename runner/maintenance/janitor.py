"""Keep Redis and this host tidy: records whose time is over, and archives that no version needs; containers of runners
that are gone, and the bundle cache.

The one for Redis also audits the queue, some records in each round: what should not exist is put right and told.
"""

from __future__ import annotations

from collections.abc import Callable

from bananas import events
from bananas.errors import EngineUnavailable
from bananas.leftovers import Leftovers
from bananas.queue import Queue
from runner.bundles import BundleCache
from runner.host import Host
from runner.service import PeriodicService

_PERIOD_S = 30.0
_BATCH = 1000
#: In a round the audit looks at this many times as many records, or at all.
_AUDIT_LOOKS = 10
_AUDIT_COUNT = 500


class Janitor(PeriodicService):
    """Of Redis; one round every 30 s."""

    name = "janitor"

    def __init__(self, on_crash: Callable[[str, BaseException], None], queue: Queue, leftovers: Leftovers) -> None:
        super().__init__(on_crash, _PERIOD_S)
        self._queue = queue
        self._leftovers = leftovers
        #: Where the audit goes on.
        self._cursor = 0
        #: True while more records wait to be dropped than one batch holds.
        self._is_behind = False

    def run_once(self) -> float | None:
        """One round; comes back at once when a batch was full, and then only for the next batch."""
        if not self._is_behind:
            self._audit()
            self._tidy()
        self._is_behind = self._queue.sweep(_BATCH) >= _BATCH
        return 0.0 if self._is_behind else None

    def _tidy(self) -> None:
        for _ in range(_AUDIT_LOOKS):
            self._leftovers.forget(_AUDIT_COUNT)
            if gone := self._leftovers.look(_BATCH):
                events.BUNDLES_LET_GO(archives=gone)

    def _audit(self) -> None:
        for _ in range(_AUDIT_LOOKS):
            audit = self._queue.audit(self._cursor, _AUDIT_COUNT)
            self._cursor = audit.cursor
            if audit.repaired:
                kinds = " ".join(f"{kind}={n}" for kind, n in sorted(audit.repaired.items()))
                events.QUEUE_REPAIRED(repaired=kinds)
            if not audit.cursor:
                return


class HostJanitor(PeriodicService):
    """Of this machine; one round every 30 s."""

    name = "host_janitor"

    def __init__(self, on_crash: Callable[[str, BaseException], None], host: Host, bundles: BundleCache) -> None:
        super().__init__(on_crash, _PERIOD_S)
        self._host = host
        self._bundles = bundles

    def run_once(self) -> float | None:
        """One round."""
        self._bundles.prune()
        try:
            self._host.sweep()
        except EngineUnavailable as e:
            events.SWEEP_FAILED(error=e)
        return None
