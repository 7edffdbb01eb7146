"""What keeps this runner from taking jobs of a pool for now, and how many it can take: its engine does not answer, or
the GPUs that the pool needs belong to others. Such jobs stay in the queue; nothing of them is used up.

The worker asks before each claim. The words of ``reasons`` go to Redis with the runner's announcement, for the records
of jobs, ``/readyz`` and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runner.gpus import Gpus
from runner.pool import SandboxPool
from runner.reasons import EndReason
from runner.slot import SandboxState

ENGINE = "engine"
GPUS = "gpus"


class HoldUps:
    """See the module."""

    def __init__(self, pools: Mapping[str, SandboxPool], gpus: Gpus, engine_answers: Callable[[], bool]) -> None:
        self._pools = pools
        self._gpus = gpus
        self._engine_answers = engine_answers
        gpus.reclaim = self._free_gpus

    def free(self, pool: SandboxPool) -> int:
        """How many attempts of the pool could be taken on now."""
        free = pool.free
        if not free or not self._engine_answers():
            return 0
        if not pool.spec.gpus:
            return free
        at_work = pool.spec.concurrency - free
        return max(0, min(free, self._gpus.places(pool.spec.gpus, pool.name, self._idle_devices(pool)) - at_work))

    def reasons(self) -> dict[str, str]:
        """Pool → ``engine`` or ``gpus``, for those that take no jobs for such a reason."""
        if not self._engine_answers():
            return dict.fromkeys(self._pools, ENGINE)
        with_gpus = [pool for pool in self._pools.values() if pool.spec.gpus]
        return {pool.name: GPUS for pool in with_gpus if pool.free and not self.free(pool)}

    def _idle_devices(self, asking: SandboxPool) -> int:
        """Devices that idle sandboxes of the other pools would give up."""
        others = [pool for pool in self._pools.values() if pool.spec.gpus and pool is not asking]
        return sum(pool.states()[SandboxState.IDLE.value] * self._gpus.number(pool.spec.gpus) for pool in others)

    def _free_gpus(self) -> None:
        """End idle sandboxes that hold devices, because another one needs some."""
        for pool in self._pools.values():
            if pool.spec.gpus:
                for slot in pool.evictable():
                    pool.evict(slot, EndReason.GPUS)
