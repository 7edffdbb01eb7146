"""Ends the sandboxes of one pool: each once, whoever orders it first, and counts it with its reason.

Several attempts may want the same end (calls that shared a sandbox): each of them hears of it when everything in the
sandbox is dead. Why a sandbox ends is the pool's to decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from bananas.protocols import ExitInfo
from runner.reasons import EndReason
from runner.slot import Slot
from runner.tally import Tally

#: For an end that another greenlet sees to; the engine's own deadlines are shorter.
DEAD_S = 120.0

OnLog = Callable[[bytes], None]


class Endings:
    """See the module."""

    def __init__(self, pool: str, tally: Tally, forget: Callable[[Slot], None]) -> None:
        """``forget`` gives up the slot's place and memory, at once."""
        self._pool = pool
        self._tally = tally
        self._forget = forget
        #: Those in the background.
        self.greenlets: set[gevent.Greenlet[..., Any]] = set()

    def soon(self, slot: Slot, why: EndReason) -> None:
        """In the background: nobody waits for a sandbox that is of no use any more."""
        if not slot.is_ending:
            self._begin(slot)
            greenlet = gevent.spawn(self._finish, slot, why, None)
            self.greenlets.add(greenlet)
            greenlet.link(self.greenlets.discard)

    def now(self, slot: Slot, why: EndReason, on_log: OnLog | None) -> ExitInfo:
        """Everything in it is dead when this returns. Logs that were still on the way go to ``on_log``."""
        if slot.is_ending:
            slot.dead.wait(timeout=DEAD_S)
        else:
            self._begin(slot)
            self._finish(slot, why, on_log)
        return slot.exit

    def _begin(self, slot: Slot) -> None:
        slot.is_ending = True
        slot.ended_calls = len(slot.seats)
        self._forget(slot)

    def _finish(self, slot: Slot, why: EndReason, on_log: OnLog | None) -> None:
        try:
            if slot.sandbox is not None:
                slot.exit = slot.sandbox.terminate(on_log)
                why = EndReason.FAILED_OOM if slot.exit.oom else why
                self._tally.ended(self._pool, slot.function, slot.id, slot.uses, why)
        finally:
            slot.dead.set()
