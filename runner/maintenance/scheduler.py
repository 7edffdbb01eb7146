"""Fires schedules at the moment a slot is due, by Redis' clock. Every runner does; ``fire.lua`` lets one win."""

from __future__ import annotations

from collections.abc import Callable

from bananas import events
from bananas.redis_client import BLOCK_S
from bananas.schedules import Schedules
from runner.service import PeriodicService


class Scheduler(PeriodicService):
    """Sleeps until the next slot, at most 5 s: so soon it sees a new schedule."""

    name = "scheduler"

    def __init__(self, on_crash: Callable[[str, BaseException], None], schedules: Schedules) -> None:
        super().__init__(on_crash, BLOCK_S)
        self._schedules = schedules

    def run_once(self) -> float | None:
        """Fire what is due; returns seconds until the next slot."""
        look = self._schedules.look()
        if look.fired:
            events.SCHEDULE_FIRED(slots=len(look.fired))
        return BLOCK_S if look.next_ms is None else min(BLOCK_S, look.next_ms / 1000)
