"""What one runner has counted: starts and ends of sandboxes, attempts, how long their phases took, egress.

Counting is an addition in memory. The announcer takes what is new to Redis, where the counts of all runners meet; the
runner's own ``/metrics`` tells everything since its start. Fields are named as in ``bananas.keys``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from bananas import events
from bananas.job import Attempt
from bananas.metrics import PHASES, Durations
from runner.reasons import EndReason, Start, StartReason

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
        #: New as well, by the name in ``timings`` and the pool; put together when somebody asks.
        self._times: Durations[tuple[str, str]] = Durations()
        self._starts: Counter[tuple[str, str, Start, StartReason]] = Counter()
        #: What only the runner itself tells.
        self._own: Counter[str] = Counter()
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._functions: set[str] = set()

    def started(
        self, pool: str, function: str, sandbox: str, start: Start, reason: StartReason, wait_ms: float
    ) -> None:
        """One start; ``function`` is empty for a stem."""
        self._starts[pool, self._label(function), start, reason] += 1
        if start is not Start.WARM:
            events.SANDBOX_STARTED(
                pool=pool,
                function=function,
                sandbox=sandbox,
                start=start.value,
                reason=reason.value,
                wait_ms=round(wait_ms, 1),
            )

    def ended(self, pool: str, function: str, sandbox: str, uses: int, reason: EndReason) -> None:
        """One end."""
        self._new[f"end:{pool}:{self._label(function)}:{reason}"] += 1
        events.SANDBOX_ENDED(pool=pool, function=function, sandbox=sandbox, uses=uses, reason=reason.value)

    def settled(self, pool: str, attempt: Attempt, accepted: bool) -> None:
        """An attempt's end was told; ``accepted``: it was still the job's."""
        if not accepted:
            self._own["refused"] += 1
            return
        self._attempts[pool, attempt.outcome.value] += 1
        for name, took_ms in attempt.timings.items():
            # A warm sandbox has loaded its code before: that is no loading in 0 s.
            if took_ms or name != "init_ms":
                self._times.add((name, pool), took_ms)

    def abandoned(self, why: str) -> None:
        """An attempt was ended without a report."""
        self._own[f"abandoned:{why.replace(' ', '_')}"] += 1

    def add(self, counts: Mapping[str, int]) -> None:
        """What others have counted."""
        self._new.update(counts)

    def take(self) -> Counter[str]:
        """Everything that Redis is to hear of, by field."""
        self._gather()
        counts, self._new = self._new, Counter()
        self._told.update(counts)
        return counts

    def put_back(self, counts: Counter[str]) -> None:
        """They could not be told."""
        self._told.subtract(counts)
        self._new.update(counts)

    def totals(self) -> Counter[str]:
        """Everything since the start, by field."""
        self._gather()
        attempts = Counter({f"attempt:{pool}:{outcome}": n for (pool, outcome), n in self._attempts.items()})
        return self._told + self._new + self._own + attempts

    def _gather(self) -> None:
        for (pool, function, start, reason), n in self._starts.items():
            self._new[f"start:{pool}:{function}:{start}:{reason}"] += n
        self._starts.clear()
        for (name, pool), counts, sum_us in self._times.take():
            if (phase := _TIMINGS.get(name)) is not None:
                self._new.update({f"{phase}:{pool}:{bucket}": n for bucket, n in counts.items()})
                self._new[f"{phase}_us:{pool}"] += sum_us

    def _label(self, function: str) -> str:
        if function not in self._functions:
            if len(self._functions) >= _MOST_FUNCTIONS:
                return _OTHERS
            self._functions.add(function)
        return function
