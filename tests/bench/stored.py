"""What jobs take in Redis: memory while they wait, are done or have failed, and what their life adds to the append-only
file.

Its own Redis. The records are those of a busy runner: warm sandboxes, all timings, no output.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from bananas.embedded import EmbeddedRedis
from bananas.job import Attempt, Claim, DeadReason, Decision, NewJob, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from tests.bench.bench import Bench
from tests.bench.claims import deploy_noop
from tests.bench.table import Row

PAYLOADS = (100, 10_000)
LEASE_MS = 600_000
_BATCH = 100
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Life:
    """What becomes of some jobs, and which figure of INFO tells of it."""

    what: str
    #: How their attempts end, and what follows; None: they wait.
    ended: tuple[Outcome, Decision] | None = None
    figure: tuple[str, str] = ("memory", "used_memory")


_COMPLETED = (Outcome.OK, Decision("complete"))
LIVES = (
    Life("waiting"),
    Life("completed, records kept", _COMPLETED),
    Life("failed, dead letters", (Outcome.ERROR, Decision("dead", reason=DeadReason.RETRIES_EXHAUSTED))),
    Life("in the append-only file, submit to end", _COMPLETED, figure=("persistence", "aof_current_size")),
)


def stored(bench: Bench) -> list[Row]:
    """memory in Redis of 10,000 jobs that wait, are done or failed, and their append-only file"""
    jobs = bench.options.n(10_000, 200)
    rows = []
    for size in PAYLOADS:
        for life in LIVES:
            mb = grown_mb(jobs, b'"%s"' % (b"x" * (size - 2)), life)
            label = f"{jobs:,} jobs {life.what}; payload and result {size:,} bytes"
            rows.append(Row("stored", label, n=jobs, mb=mb))
    return rows


def grown_mb(jobs: int, payload: bytes, life: Life) -> float:
    """By how many MiB the figure of a fresh server grew."""
    section, field = life.figure
    with tempfile.TemporaryDirectory(prefix="bn-") as folder:
        server = EmbeddedRedis(Path(folder) / "redis", unix_socket=Path(folder) / "r")
        server.start()
        connections = Connections(server.url)
        try:
            redis, queue = connections.commands, Queue(connections)
            # Else the file would be written anew in the middle, without what a job's life adds to it.
            redis.config_set("auto-aof-rewrite-percentage", 0)
            deploy_noop(connections)
            before = redis.info(section)[field]
            _enqueue(queue, jobs, payload)
            if life.ended is not None:
                _end(queue, jobs, *life.ended, payload if life.ended is _COMPLETED else b"")
            return float(redis.info(section)[field] - before) / _MIB
        finally:
            connections.close()
            server.stop()


def _enqueue(queue: Queue, jobs: int, payload: bytes) -> None:
    for _ in range(jobs // _BATCH):
        queue.enqueue_many([NewJob("noop", payload) for _ in range(_BATCH)])


def _end(queue: Queue, jobs: int, outcome: Outcome, decision: Decision, result: bytes) -> None:
    ended, settlements = 0, list[Settlement]()
    while ended < jobs:
        step = queue.step("bench-1a2b3c4d", LEASE_MS, settlements, [("default", _BATCH)])
        ended += len(settlements)
        settlements = [_settlement(claim, outcome, decision, result) for claim in step.claims]


def _settlement(claim: Claim, outcome: Outcome, decision: Decision, result: bytes) -> Settlement:
    timings = {"queued_ms": 12.0, "wait_sandbox_ms": 0.05, "init_ms": 0.0, "run_ms": 1.234, "total_ms": 13.345}
    attempt = Attempt(
        *(claim.token, outcome, "bench-1a2b3c4d", claim.claimed_at_ms),
        start="warm",
        sandbox="0123456789",
        nth_use=42,
        timings=timings,
        error=None if outcome is Outcome.OK else {"type": "ValueError", "message": "no", "traceback": "x" * 300},
    )
    return Settlement(claim, attempt, decision, result)
