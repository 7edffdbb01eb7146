"""Jobs through the queue: from a full one to an empty one, and submitted over HTTP while they run.

The references drain theirs in the same rounds, each in an environment and a database of its own, on the same Redis.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from bananas import keys
from bananas.errors import BananasError
from bananas.job import NewJob
from tests.bench import references
from tests.bench.bench import NOOP, POOLS, POOLS_YAML, Bench, wait_warm
from tests.bench.load import closed, request
from tests.bench.table import Round, Row, interleaved
from tests.platform import Platform

_BATCH: Final = 1000
_LOOK_S: Final = 0.005
_DEADLINE_S: Final = 180.0


def prepare(platform: Platform) -> None:
    """Functions in pools of 10 and 20 sandboxes, all of them warm."""
    for pool, number in POOLS.items():
        platform.deploy({pool: NOOP}, f"    pool: {pool}\n    min_warm: {number}", POOLS_YAML)
    for pool, number in POOLS.items():
        wait_warm(platform, pool, number)


def drain(bench: Bench) -> list[Row]:
    """20,000 queued jobs through 10 and 20 sandboxes, beside taskiq, dramatiq, huey, celery and rq"""
    jobs = bench.options.n(20_000, 300)
    subjects: dict[str, Callable[[], Round]] = {}
    for side, platform in bench.sides.items():
        prepare(platform)
        for pool, number in POOLS.items():
            label = f"drain of {jobs:,} queued jobs, {number} sandboxes" + (f" @{side}" if side else "")
            subjects[label] = partial(drained_per_s, platform, pool, jobs)
    if bench.options.against:
        rows = []
        for number in POOLS.values():
            pair = {label: measure for label, measure in subjects.items() if f" {number} sandboxes" in label}
            rows += interleaved("drain", "per_s", pair, bench.options.rounds, list(pair)[-1])
        return rows
    queues = {} if bench.options.quick else references.prepared(bench)
    rounds = min(3, bench.options.rounds)
    rows = interleaved("drain", "per_s", {**queues, **subjects}, rounds, None)
    return _against_the_best(rows, list(queues))


def _against_the_best(rows: list[Row], queues: list[str]) -> list[Row]:
    """Ratios to the fastest of the references; that is known only now."""
    others = [row for row in rows if row.what in queues]
    if others:
        best = max(others, key=lambda row: row.per_s or 0.0)
        for row in rows:
            if row is not best and row.per_s and best.per_s:
                row.ratio, row.reference, row.ratio_of = row.per_s / best.per_s, best.what, "per_s"
    return rows


def drained_per_s(platform: Platform, function: str, jobs: int) -> float:
    """Jobs per second of a runner that finds so many queued. It stands still while they are put in."""
    done = _done(platform, function)
    with _stopped(platform):
        for start in range(0, jobs, _BATCH):
            answers = platform.queue.enqueue_many([NewJob(function, b"1") for _ in range(min(_BATCH, jobs - start))])
            refused = [answer for answer in answers if isinstance(answer, BananasError)]
            if refused:
                raise refused[0]
    began_s = time.perf_counter()
    _wait_done(platform, function, done + jobs)
    return jobs / (time.perf_counter() - began_s)


@contextmanager
def _stopped(platform: Platform) -> Iterator[None]:
    runners = [process.popen.pid for process in platform.processes if process.name.startswith("runner")]
    for pid in runners:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in runners:
            os.kill(pid, signal.SIGCONT)


def flow(bench: Bench) -> list[Row]:
    """20,000 jobs submitted over HTTP while they run, one by one by 10 clients and in batches of 100 by 2"""
    jobs = bench.options.n(20_000, 200)
    one = {"name": "twenty", "payload": 1}
    single = request("POST", "/jobs", json.dumps(one).encode())
    batch = request("POST", "/jobs/batch", json.dumps({"jobs": [one] * 100}).encode())
    for platform in bench.sides.values():
        prepare(platform)

    def measure(platform: Platform, body: bytes, calls: int, clients: int) -> float:
        done = _done(platform, "twenty")
        began_s = time.perf_counter()
        sample = closed(platform.port, body, calls, clients)
        if sample.errors:
            raise SystemExit(f"{sample.errors} of {calls} submits failed: {dict(sample.statuses)}")
        _wait_done(platform, "twenty", done + jobs)
        return jobs / (time.perf_counter() - began_s)

    rounds = min(3, bench.options.rounds)
    rows = bench.rows(
        *("flow", "per_s", f"{jobs:,} jobs by POST /jobs while they run, 20 sandboxes"),
        lambda platform: measure(platform, single, jobs, 10),
        rounds=rounds,
    )
    return rows + bench.rows(
        *("flow", "per_s", f"{jobs:,} jobs in batches of 100 while they run, 20 sandboxes"),
        lambda platform: measure(platform, batch, jobs // 100, 2),
        rounds=rounds,
    )


def _done(platform: Platform, function: str) -> int:
    return int(platform.connections.commands.hget(keys.COUNTERS, f"outcome:{function}:ok") or 0)


def _wait_done(platform: Platform, function: str, wanted: int) -> None:
    deadline_s = time.monotonic() + _DEADLINE_S
    while (done := _done(platform, function)) < wanted:
        if time.monotonic() > deadline_s:
            raise SystemExit(f"{wanted - done} jobs were not done after {_DEADLINE_S:g} s")
        time.sleep(_LOOK_S)
