"""The sandboxes of one pool that are bound or awaited by an attempt: which there are, which are idle, and how many
places they take. Decides nothing; ``pool.py`` and ``readiness.py`` are the users.
"""

from __future__ import annotations

from collections import Counter

from runner.slot import SandboxState, Slot


class Roster:
    """See the module. Stems, and sandboxes that are bound ahead of need, come in when they are ready."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        #: In the order in which they became idle.
        self.idle: list[Slot] = []
        #: Those of the slots that may run several calls.
        self._shared: list[Slot] = []

    @property
    def places(self) -> int:
        """Those that are taken: one by each sandbox, and one by each call in it beyond the first."""
        beside = sum(max(0, len(slot.seats) - 1) for slot in self._shared) if self._shared else 0
        return len(self.slots) + beside

    @property
    def at_work(self) -> int:
        """The places that idle sandboxes do not take."""
        return self.places - len(self.idle)

    def add(self, slot: Slot) -> None:
        """It comes, with a seat taken or idle."""
        self.slots.append(slot)
        if slot.reuse.calls > 1:
            self._shared.append(slot)

    def remove(self, slot: Slot) -> bool:
        """It goes; False when it was not there."""
        is_there = slot in self.slots
        for group in (self.slots, self.idle, self._shared):
            if slot in group:
                group.remove(slot)
        return is_there

    def rest(self, slot: Slot, now_s: float) -> None:
        """Nobody sits in it any more."""
        slot.state, slot.idle_since_s = SandboxState.IDLE, now_s
        self.idle.append(slot)

    def open_to(self, key: object, now_s: float) -> list[Slot]:
        """Those that run calls of the key, or are being loaded for one, and have room for another."""
        return [slot for slot in self._shared if slot.key == key and slot.seats and slot.has_room(now_s)]

    def knows(self, key: object) -> bool:
        """Is there one of the key, whatever it does?"""
        return any(slot.key == key for slot in self.slots)

    def busy(self) -> Counter[object]:
        """How many sandboxes of each key run calls."""
        return Counter(slot.key for slot in self.slots if slot.state is SandboxState.BUSY)

    def started(self) -> Counter[object]:
        """How many sandboxes of each key have their container."""
        return Counter(slot.key for slot in self.slots if slot.sandbox is not None)
