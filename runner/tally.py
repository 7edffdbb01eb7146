"""What one runner has counted: starts and ends of sandboxes, attempts, how long their phases took, egress.

Counting is an addition in memory. The announcer takes what is new to Redis, where the counts of all runners meet; the
runner's own ``/metrics`` tells everything since its start. Fields are named as in ``bananas.keys``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from bananas.job import Attempt
from bananas.metrics import PHASES, bucket
from runner.reasons import EndReason, Start, StartReason

log = logging.getLogger(__name__)

#: Names of functions that are told apart in one life of a runner; those of others come later are one.
_MOST_FUNCTIONS: Final = 2000
_OTHERS: Final = "_others"
#: Of an attempt's ``timings`` → phase.
_TIMINGS: Final = {f"{phase}_ms": phase for phase in PHASES}


class Tally:
    """See the module."""

    def __init__(self) -> None:
        #: What Redis has not heard of yet, and what it has.
        self._new: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        #: What only the runner itself tells.
        self._own: Counter[str] = Counter()
        self._functions: set[str] = set()

    def started(
        self, pool: str, function: str, sandbox: str, start: Start, reason: StartReason, wait_ms: float
    ) -> None:
        """One start; ``function`` is empty for a stem."""
        self._new[f"start:{pool}:{self._label(function)}:{start}:{reason}"] += 1
        if start is not Start.WARM:
            log.info(
                "sandbox started pool=%s function=%s sandbox=%s start=%s reason=%s wait_ms=%.1f",
                *(pool, function or "-", sandbox, start, reason or "-", wait_ms),
            )

    def ended(self, pool: str, function: str, sandbox: str, uses: int, reason: EndReason) -> None:
        """One end."""
        self._new[f"end:{pool}:{self._label(function)}:{reason}"] += 1
        log.info(
            "sandbox ended pool=%s function=%s sandbox=%s uses=%d reason=%s",
            *(pool, function or "-", sandbox, uses, reason),
        )

    def settled(self, pool: str, attempt: Attempt, accepted: bool) -> None:
        """An attempt's end was told; ``accepted``: it was still the job's."""
        if not accepted:
            self._own["refused"] += 1
            return
        self._own[f"attempt:{pool}:{attempt.outcome}"] += 1
        for name, took_ms in attempt.timings.items():
            # A warm sandbox has loaded its code before: that is no loading in 0 s.
            if (phase := _TIMINGS.get(name)) is not None and (took_ms or phase != "init"):
                self._new[f"{phase}:{pool}:{bucket(took_ms / 1000)}"] += 1
                self._new[f"{phase}_us:{pool}"] += round(took_ms * 1000)

    def abandoned(self, why: str) -> None:
        """An attempt was ended without a report."""
        self._own[f"abandoned:{why.replace(' ', '_')}"] += 1

    def add(self, counts: Mapping[str, int]) -> None:
        """What others have counted."""
        self._new.update(counts)

    def take(self) -> Counter[str]:
        """Everything that Redis is to hear of, by field."""
        counts, self._new = self._new, Counter()
        self._told.update(counts)
        return counts

    def put_back(self, counts: Counter[str]) -> None:
        """They could not be told."""
        self._told.subtract(counts)
        self._new.update(counts)

    def totals(self) -> Counter[str]:
        """Everything since the start, by field."""
        return self._told + self._new + self._own

    def _label(self, function: str) -> str:
        if function not in self._functions:
            if len(self._functions) >= _MOST_FUNCTIONS:
                return _OTHERS
            self._functions.add(function)
        return function
