"""What one pool keeps ahead of need: how many stems, which ``min_warm`` sandboxes, and which idle ones for that reason.

``maintenance/upkeep.py`` makes the plan, ``supply.py`` and ``warmups.py`` do the work, ``pool.py`` asks. Counts are of
sandboxes, however many calls run in one.
"""

from __future__ import annotations

from collections.abc import Callable

from bananas.spec import PoolSpec
from runner import placement
from runner.alarm import Setbacks
from runner.ledger import Ledger, footprint_mb
from runner.reasons import EndReason
from runner.roster import Roster
from runner.slot import Plan, Slot, Wish, fits
from runner.supply import Supply
from runner.warmups import WarmUps


class Readiness:
    """See the module."""

    def __init__(
        self, roster: Roster, supply: Supply, ledger: Ledger, setbacks: Setbacks, end: Callable[[Slot, EndReason], None]
    ) -> None:
        self._roster = roster
        self._supply = supply
        self._ledger = ledger
        self._setbacks = setbacks
        self._end = end
        self._plan = Plan()
        self.is_closed = False

    def prepare(self, plan: Plan, spec: PoolSpec) -> bool:
        """Follow a new plan; False when it is the old one."""
        if plan == self._plan:
            return False
        self._plan = plan
        self._setbacks.clear()
        self.aim(spec)
        return True

    def aim(self, spec: PoolSpec) -> None:
        """The pool's settings are these now."""
        fitting = [profile for profile in self._plan.stems if fits(profile, spec)]
        self._supply.aim(dict.fromkeys(fitting, spec.stems) if spec.stems else {})

    def refill(self, spec: PoolSpec, warm_ups: WarmUps) -> None:
        """Have missing stems and ``min_warm`` sandboxes started, behind waiting work."""
        self._supply.refill(self._setbacks.may_try)
        wishes = {wish.key: wish for wish in self._plan.wishes if fits(wish.profile, spec)}
        have = self._roster.started()
        have.update(slot.key for slot in warm_ups.slots)
        for key, number in placement.missing(have, {key: wish.number for key, wish in wishes.items()}).items():
            for _ in range(number if self._setbacks.may_try(key) else 0):
                room = spec.concurrency - self._roster.places - len(warm_ups.slots)
                if not self._ledger.fits(footprint_mb(wishes[key].profile)) or not self._has_place(wishes[key], room):
                    break
                warm_ups.start(wishes[key])

    def kept(self) -> list[Slot]:
        """The idle ones that ``min_warm`` keeps."""
        wanted = {wish.key: wish.number for wish in self._plan.wishes}
        return placement.kept(self._roster.idle, self._roster.busy(), wanted)

    def outdated(self, slot: Slot) -> EndReason | None:
        """Why new jobs of its function will not come to the slot; None when they will."""
        if self._plan.versions is None:
            return None
        current = self._plan.versions.get(slot.function)
        if current == slot.version:
            identity = self._plan.identities.get(slot.function)
            is_current = identity is None or not isinstance(slot.key, tuple) or slot.key[1:] == identity
            return None if is_current else EndReason.NEW_SECRET
        return EndReason.REMOVED if current is None else EndReason.NEW_VERSION

    def is_wanted(self, wish: Wish) -> bool:
        """Still, now that its turn has come?"""
        return not self.is_closed and wish in self._plan.wishes and self._ledger.fits(footprint_mb(wish.profile))

    def close(self) -> None:
        """Nothing more is wanted."""
        self.is_closed = True

    def _has_place(self, wish: Wish, room: int) -> bool:
        """Room in the pool without taking it from others; an idle one of the same function that is of no use any
        more makes some."""
        if room > 0:
            return True
        for slot in self._roster.idle:
            if slot.function == wish.binding.function and slot.key != wish.key:
                self._end(slot, self.outdated(slot) or EndReason.POOL_CHANGED)
                return True
        return False
