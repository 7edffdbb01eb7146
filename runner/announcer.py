"""What this runner tells of itself every 2 seconds: who it is, how busy, what it has, what holds it up, its counts.

The registry keeps it; a runner that is not heard of is not live. Called once more at shutdown for the last counts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping

from bananas.errors import RedisUnavailable
from bananas.registry import Registry, RunnerInfo
from runner.heartbeat import InFlight
from runner.holdups import HoldUps
from runner.metrics import Vitals
from runner.pool import SandboxPool
from runner.service import PeriodicService
from runner.tally import Tally

PERIOD_S = 2.0


class Announcer(PeriodicService):
    """See the module."""

    name = "announcer"

    def __init__(
        self,
        on_crash: Callable[[str, BaseException], None],
        registry: Registry,
        runner: str,
        served: tuple[str, ...],
        pools: Mapping[str, SandboxPool],
        in_flight: InFlight,
        tally: Tally,
        hold_ups: HoldUps,
        gpus: int,
        vitals: Vitals,
    ) -> None:
        """``served`` are the pools by the settings, empty: all; ``pools`` those that it has by now."""
        super().__init__(on_crash, PERIOD_S)
        self._registry = registry
        self._runner = runner
        self._served = served
        self._pools = pools
        self._in_flight = in_flight
        self._tally = tally
        self._hold_ups = hold_ups
        self._gpus = gpus
        self._vitals = vitals
        self._started_at_ms = registry.now_ms()

    def run_once(self) -> float | None:
        """Tell it now; raises RedisUnavailable."""
        sandboxes: Counter[str] = Counter()
        for name, pool in self._pools.items():
            sandboxes.update({f"{name}/{state}": n for state, n in pool.states().items()})
        counts = self._tally.take()
        try:
            info = RunnerInfo(
                id=self._runner,
                host=os.uname().nodename,
                pid=os.getpid(),
                pools=self._served,
                started_at_ms=self._started_at_ms,
                seen_at_ms=self._registry.now_ms(),
                busy=len(self._in_flight),
                sandboxes=dict(sandboxes),
                places={name: pool.spec.concurrency - pool.free for name, pool in self._pools.items()},
                gpus=self._gpus,
                held_up=self._hold_ups.reasons(),
            )
            with self._vitals.redis():
                self._registry.announce(info, counts)
        except RedisUnavailable:
            self._tally.put_back(counts)
            raise
        return None
