"""The memory that all sandboxes of this runner may have together, by their limits.

It bounds what is kept ahead of need: idle sandboxes and stems. Work is bounded by the pools' ``concurrency`` and never
refused for memory: idle ones of any pool are ended for it, the longest unused first, and if even all of those are not
enough it goes ahead. A limit is not use, so that is no emergency; the runner warns when its pools could come to that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from bananas.protocols import SandboxProfile
from runner import placement

#: Of the machine's memory, unless BANANAS_SANDBOX_MEMORY says how much.
SHARE = 0.75
#: Of a helper that runs beside a container of a user's own image.
HELPER_MB = 64


def footprint_mb(profile: SandboxProfile) -> int:
    """What a sandbox may take of the machine's memory: the pool's, and that of what runs beside it."""
    has_helper = profile.shim == "http" or (profile.shim == "exec" and bool(profile.egress))
    return profile.memory_mb + (HELPER_MB if has_helper else 0)


class Holder(Protocol):
    """A pool, as the ledger sees it."""

    def evictable(self) -> Sequence[placement.Evictable]:
        """What it could end now."""
        ...

    def evict(self, victim: placement.Evictable) -> None:
        """End one of these, because of memory."""
        ...


class Ledger:
    """See the module. All amounts are MiB."""

    def __init__(self, budget_mb: int) -> None:
        self.budget_mb = budget_mb
        self.used_mb = 0
        self._holders: list[Holder] = []

    def join(self, holder: Holder) -> None:
        """A pool begins."""
        self._holders.append(holder)

    def fits(self, memory_mb: int) -> bool:
        """True when so much more is within the budget."""
        return self.used_mb + memory_mb <= self.budget_mb

    def take(self, memory_mb: int) -> None:
        """A sandbox comes."""
        self.used_mb += memory_mb

    def give(self, memory_mb: int) -> None:
        """A sandbox goes."""
        self.used_mb -= memory_mb

    def make_room(self, memory_mb: int) -> None:
        """End idle sandboxes until so much more fits, or none is left."""
        if self.fits(memory_mb):
            return
        holders = {id(victim): holder for holder in self._holders for victim in holder.evictable()}
        every = [victim for holder in self._holders for victim in holder.evictable()]
        for victim in placement.victims(every, self.used_mb + memory_mb - self.budget_mb):
            holders[id(victim)].evict(victim)


def machine_budget_mb() -> int:
    """What sandboxes may have unless it is set: a share of the machine's memory."""
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20 * SHARE)
