"""What a storm does: how many jobs of which kinds, by how many processes, disturbed how. All from one seed.

``BANANAS_CHAOS_SIZE`` (small, full, long) chooses the numbers; each can be set by itself, see docs/chaos.md. The same
seed makes the same jobs and the same choices of what to kill and when; what the machine makes of them differs.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from random import Random
from typing import Any

from bananas.job import NewJob

#: Variable → value for small (inside ``make test``), full (``make chaos``), long (``make chaos-long``).
SIZES: dict[str, tuple[float, float, float]] = {
    "JOBS": (500, 5000, 200_000),
    "RUNNERS": (3, 8, 8),
    "SPREAD_S": (5, 40, 240),
    "PLATFORM_JOBS": (60, 400, 1500),
    "PLATFORM_RUNNERS": (2, 3, 3),
    "GATEWAYS": (2, 2, 2),
    "PLATFORM_SPREAD_S": (7, 60, 300),
    "REDIS_KILL_EVERY_S": (2, 20, 20),
    "REDIS_KILLS": (1, 4, 15),
    "PARTITION_S": (3, 60, 60),
    "RESTARTS": (4, 20, 40),
    "HISTORIES": (60, 1000, 10_000),
}
#: The kinds of jobs and how many of 1,000 are of each.
MIX = {
    "quick": 592,
    "short": 150,
    "slow": 80,
    "flaky": 50,
    "hopeless": 10,
    "permanent": 10,
    "delayed": 50,
    "narrow": 50,
    "withdrawn": 8,
}
#: The most attempts of the function ``narrow`` at once.
NARROW = 3
#: More tries after the first, of every function here.
RETRIES = 2


def size() -> str:
    """The name of the size; AssertionError for one that does not exist."""
    name = os.environ.get("BANANAS_CHAOS_SIZE") or "small"
    assert name in ("small", "full", "long"), f"BANANAS_CHAOS_SIZE={name!r} is not small, full or long"
    return name


def number(name: str) -> float:
    """One number of the plan: its own variable, else what the size says."""
    return float(os.environ.get(f"BANANAS_CHAOS_{name}") or SIZES[name][("small", "full", "long").index(size())])


def seed() -> int:
    """``BANANAS_CHAOS_SEED``, 1 by default."""
    return int(os.environ.get("BANANAS_CHAOS_SEED") or 1)


def kill_every_s() -> tuple[float, float]:
    """Least and most seconds between two kills: ``BANANAS_CHAOS_KILL_EVERY_S``, by default ``1-3``, small ``0.3-1``."""
    usual = "0.3-1" if size() == "small" else "1-3"
    low, _, high = (os.environ.get("BANANAS_CHAOS_KILL_EVERY_S") or usual).partition("-")
    return float(low), float(high or low)


def mix() -> dict[str, int]:
    """``BANANAS_CHAOS_MIX`` as ``quick=500,slow=20,...``: relative weights, kinds left out have none."""
    raw = os.environ.get("BANANAS_CHAOS_MIX")
    if not raw:
        return MIX
    given = {kind: int(weight) for kind, _, weight in (part.partition("=") for part in raw.split(","))}
    assert set(given) <= set(MIX), f"BANANAS_CHAOS_MIX names {sorted(set(given) - set(MIX))}; known are {sorted(MIX)}"
    return given


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job and how it has to end, whatever happens around it."""

    kind: str
    function: str
    #: What the handler is told: ``run_ms``, and how many attempts ``fail`` (a large number: all), ``permanent``.
    event: dict[str, Any]
    #: ``completed``, ``cancelled`` or the reason of a dead letter.
    end: str
    priority: str | None = None
    pool: str | None = None
    delay_ms: int = 0

    @property
    def failures(self) -> int:
        """Attempts that fail because the handler says so."""
        return {"permanent": 1, "retries_exhausted": RETRIES + 1}.get(self.end, int(self.event.get("fail", 0)))


@dataclass(slots=True)
class Sent:
    """A job on its way into the queue."""

    plan: JobPlan
    job: NewJob
    #: Monotonic seconds of the acknowledgement; None until then.
    acked_s: float | None = None


@dataclass(slots=True)
class Disruption:
    """Something that was done to the platform."""

    kind: str
    at_s: float
    #: Names of the runners that could not go on from then.
    runners: tuple[str, ...] = ()
    until_s: float = math.inf


def jobs(rng: Random, count: int, *, pools: bool = True, more_ms: int = 0) -> list[JobPlan]:
    """``count`` jobs of mixed kinds, priorities and pools; each runs up to ``more_ms`` longer."""
    weights = mix()
    kinds = rng.choices(list(weights), list(weights.values()), k=count)
    planned = [_job(rng, kind, pools) for kind in kinds]
    for job in planned:
        job.event["run_ms"] += rng.randint(0, more_ms)
    return planned


def _job(rng: Random, kind: str, pools: bool) -> JobPlan:
    priority = rng.choice((None, "high", "normal", "low"))
    pool = rng.choice((None, None, None, "gpu", "email")) if pools else None
    function, event, end, delay_ms = "work", {"run_ms": 0}, "completed", 0
    match kind:
        case "short":
            event = {"run_ms": rng.randint(5, 50)}
        case "slow":  # some outlive a lease of 2 s, so only heartbeats keep them
            event = {"run_ms": rng.choice((300, 600, 1000, 2500))}
        case "flaky":
            event = {"run_ms": rng.randint(0, 20), "fail": rng.randint(1, RETRIES)}
        case "hopeless":
            event, end = {"run_ms": 0, "fail": 99}, "retries_exhausted"
        case "permanent":
            event, end = {"run_ms": 0, "permanent": True}, "permanent"
        case "delayed":
            delay_ms = rng.randint(100, 3000)
        case "narrow":
            function, event, pool = "narrow", {"run_ms": rng.randint(2, 20)}, None
        case "withdrawn":
            end, delay_ms = "cancelled", 600_000
    return JobPlan(kind, function, event, end, priority, pool, delay_ms)
