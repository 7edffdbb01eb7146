"""Jobs for tests of the queue: enqueue, end and repair many, in a line."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bananas import keys, retry
from bananas.job import Attempt, Claim, Enqueued, NewJob, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections

LEASE_MS = 60_000


def enqueue(queue: Queue, n: int, function: str, **kw: object) -> list[str]:
    """``n`` jobs alike; their ids in order."""
    answers = queue.enqueue_many([NewJob(function, b"1", **kw) for _ in range(n)])
    assert all(isinstance(answer, Enqueued) for answer in answers), answers
    return [answer.id for answer in answers]


def ids(claims: Sequence[Claim]) -> list[str]:
    """Of some claims."""
    return [c.id for c in claims]


def settlement(c: Claim, outcome: Outcome) -> Settlement:
    """As a runner reports it."""
    error = None if outcome is Outcome.OK else {"type": "E", "message": "m"}
    decision = retry.decide(outcome, c.retries, c.failures, c.starts, Random(0))
    start = None if outcome is Outcome.HELD_UP else "warm"
    return Settlement(c, Attempt(c.token, outcome, "runner", 0, start, error=error), decision, b"1")


def end(queue: Queue, claims: Sequence[Claim], outcome: Outcome) -> None:
    """Settle attempts, all the same way."""
    assert all(queue.step("runner", LEASE_MS, [settlement(c, outcome) for c in claims], []).settled)


def make_past(connections: Connections, key: str, job_ids: Sequence[str]) -> None:
    """Move the times of jobs in a sorted set into the past: the server's clock cannot be moved."""
    for job_id in job_ids:
        assert connections.commands.zscore(key, job_id) is not None, f"{job_id} is not in {key}"
        connections.commands.zadd(key, {job_id: 1}, xx=True)


def let_expire(connections: Connections, job_ids: Sequence[str]) -> None:
    """Their ``expires_after`` is over."""
    make_past(connections, keys.EXPIRING, job_ids)
    for job_id in job_ids:
        connections.commands.hset(keys.job(job_id), "expires", 1)


def repairs(queue: Queue) -> dict[str, int]:
    """What a whole round of the janitor puts right."""
    found: dict[str, int] = {}
    cursor = 0
    while True:
        audit = queue.audit(cursor)
        for kind, n in audit.repaired.items():
            found[kind] = found.get(kind, 0) + n
        cursor = audit.cursor
        if cursor == 0:
            return found
