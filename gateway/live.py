"""Which pools a live runner serves, and what a job that does not begin waits for. Asked by calls, records, pools and
``/readyz``, so that all of them say the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from bananas.job import JobRecord, JobState
from bananas.registry import Registry, RunnerInfo

#: How old the list of live runners may be when it says that a pool is served, and when it says that none does.
_LIVE_S: Final = 1.0
_DEAD_S: Final = 0.1


#: By the word that runners tell: what holds a job up, and until when.
_HELD_UP: Final = {
    "engine": ("the Docker Engine of the runners of pool {pool!r} does not answer", "the job begins when it does"),
    "gpus": ("other sandboxes have the GPUs that pool {pool!r} needs", "the job begins when they are done"),
}


class LiveRunners:
    """Which pools somebody serves, asked of Redis at most once in a second while all is well."""

    def __init__(self, registry: Registry, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._mono_s = mono_s
        self._runners: list[RunnerInfo] = []
        self._asked_s = float("-inf")

    def serve(self, pool: str, *, fresh: bool = False) -> bool:
        """True when a live runner takes jobs of the pool; ``fresh``: by what Redis says now."""
        age_s = float("inf") if fresh else self._mono_s() - self._asked_s
        if age_s < _LIVE_S and any(runner.serves(pool) for runner in self._runners):
            return True
        if age_s >= _DEAD_S:
            self._runners = self._registry.runners()
            self._asked_s = self._mono_s()
        return any(runner.serves(pool) for runner in self._runners)

    def hold_up(self, record: JobRecord) -> dict[str, Any]:
        """What a job waits for beyond its turn: ``waiting_for`` (``runner``, ``engine``, ``gpus``, ``max_concurrency``
        or None) and the same in words, for its record.
        """
        what, why = None, None
        if record.state is JobState.PENDING and (found := self.obstacle(record.pool)):
            what, why = found[0], "; ".join(found[1:])
        elif record.is_parked:
            what, why = "max_concurrency", f"function {record.function!r} runs as many jobs as its max_concurrency"
        return {"waiting_for": what, "waiting_detail": why}

    def obstacle(self, pool: str) -> tuple[str, str, str] | None:
        """What keeps all jobs of the pool from beginning: the word for it, the same in words, and what ends it."""
        if not self.serve(pool):
            return "runner", f"no live runner serves pool {pool!r}", start_one(pool)
        if word := held_up(pool, self._runners):
            why, end = _HELD_UP.get(word, (word, "the job begins when that is over"))
            return word, why.format(pool=pool), end
        return None


def start_one(pool: str) -> str:
    """The next step for a pool that nobody serves."""
    return f"start one with `bananas runner --pools {pool}`"


def held_up(pool: str, runners: Iterable[RunnerInfo]) -> str | None:
    """Why no runner of the pool takes its jobs for now, in the word of the first; None while one does."""
    words = [runner.held_up.get(pool) for runner in runners if runner.serves(pool)]
    return words[0] if words and all(words) else None


def unserved(queued: Mapping[str, int], runners: list[RunnerInfo]) -> list[str]:
    """The pools in which jobs wait (how many: ``queued``) while no live runner serves them."""
    return [pool for pool, n in queued.items() if n > 0 and not any(runner.serves(pool) for runner in runners)]
