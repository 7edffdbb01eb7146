"""expires_after: a job that waits too long for its first attempt fails, wherever it waits, and nothing else does."""

from __future__ import annotations

import time

import pytest

from bananas import keys
from bananas.job import JobState, NewJob, Outcome
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from tests.bells import rings
from tests.integration.jobs import end, enqueue, ids, let_expire, repairs
from tests.integration.test_queue import REPLY, claim, deploy

pytestmark = pytest.mark.redis


@pytest.fixture
def registry(connections: Connections) -> Registry:
    registry = Registry(connections)
    deploy(registry, "f")
    deploy(registry, "one", max_concurrency=1)
    return registry


def waiting(queue: Queue, where: str) -> str:
    """A job that expires, in one of the places where a job may wait."""
    if where == "parked":
        enqueue(queue, 1, "one")
    [job] = enqueue(
        queue, 1, "one" if where == "parked" else "f", expires_after_ms=60_000, reply_to=REPLY,
        delay_ms=30_000 if where == "schedule" else 0,
    )  # fmt: skip
    if where == "parked":
        claim(queue, 5)
        assert queue.show(job).is_parked
    return job


@pytest.mark.parametrize("where", ["lane", "schedule", "parked"])
@pytest.mark.parametrize("by", ["promoter", "show"])
def test_a_job_expires_wherever_it_waits_also_without_a_runner(queue, registry, connections, where, by):
    """It is a dead letter with that reason, its waiter hears of it, and no place keeps it."""
    job = waiting(queue, where)
    let_expire(connections, [job])
    if by == "promoter":
        assert queue.expire() == 1
    record = queue.show(job)
    assert (record.state, record.reason, record.token, record.history) == (JobState.FAILED, "expired", 0, [])
    [reply] = queue.replies(REPLY, 1, 10, ahead=1).pop()
    assert (reply.id, reply.state, reply.attempt) == (job, JobState.FAILED, b"null")
    assert queue.expire() == 0
    assert repairs(queue) == {}
    assert queue.counts().counters["dead:expired"] == 1
    assert queue.promote()[0] == 0
    assert job not in ids(claim(queue, 5))


def test_a_job_expires_at_its_claim_too(queue, registry, connections):
    """The promoter may be late; no attempt begins after the time."""
    late = waiting(queue, "lane")
    [fresh] = enqueue(queue, 1, "f", expires_after_ms=60_000)
    let_expire(connections, [late])
    assert ids(claim(queue, 1)) == [fresh]
    assert queue.show(late).reason == "expired"


def test_an_expired_job_makes_room_for_those_behind_it(queue, registry, connections):
    """The one that was called back for a free place expires: the next one is called."""
    first, *_ = enqueue(queue, 1, "one")
    [late] = enqueue(queue, 1, "one", expires_after_ms=60_000)
    [last] = enqueue(queue, 1, "one")
    [c] = claim(queue, 5)
    assert c.id == first
    end(queue, [c], Outcome.OK)
    let_expire(connections, [late])
    assert claim(queue, 1) == []
    assert rings(queue, "default", 1)
    assert ids(claim(queue, 1)) == [last]


def test_a_job_that_was_claimed_in_time_never_expires(queue, registry, connections):
    """Neither while it runs, nor when it waits again."""
    [job] = enqueue(queue, 1, "f", expires_after_ms=60_000)
    [c] = claim(queue)
    assert not connections.commands.exists(keys.EXPIRING)
    end(queue, [c], Outcome.HANDED_BACK)
    connections.commands.hset(keys.job(job), "expires", 1)
    assert queue.expire() == 0
    assert queue.show(job).state is JobState.PENDING
    assert ids(claim(queue)) == [job]


def test_a_job_that_was_held_up_still_expires(queue, registry, connections):
    """Nothing of it has begun, however often a runner took it and could not; once something has, it never does."""
    [job] = enqueue(queue, 1, "f", expires_after_ms=60_000)
    for _ in range(2):
        end(queue, claim(queue), Outcome.HELD_UP)
        assert connections.commands.zscore(keys.EXPIRING, job) is not None
    let_expire(connections, [job])
    assert queue.expire() == 1
    assert queue.show(job).reason == "expired"

    [begun] = enqueue(queue, 1, "f", expires_after_ms=60_000)
    end(queue, claim(queue), Outcome.HANDED_BACK)
    end(queue, claim(queue), Outcome.HELD_UP)
    assert not connections.commands.exists(keys.EXPIRING)
    assert ids(claim(queue)) == [begun]


def test_a_held_up_job_expires_at_its_claim_too(queue, registry, connections):
    """The promoter may be late."""
    [late] = enqueue(queue, 1, "f", expires_after_ms=60_000)
    end(queue, claim(queue), Outcome.HELD_UP)
    let_expire(connections, [late])
    assert claim(queue, 1) == []
    assert queue.show(late).reason == "expired"


def test_cancelled_jobs_do_not_expire(queue, registry, connections):
    """Nothing of them stays in the books."""
    job = waiting(queue, "lane")
    queue.cancel(job)
    assert not connections.commands.exists(keys.EXPIRING)
    assert queue.expire() == 0
    assert queue.show(job).state is JobState.CANCELLED


def test_the_real_clock_expires_too(queue, registry):
    """By the server's time, without anybody moving anything."""
    job = queue.enqueue(NewJob("f", b"1", expires_after_ms=1))
    deadline = time.monotonic() + 5
    while queue.show(job.id).state is JobState.PENDING:
        assert time.monotonic() < deadline
    assert queue.show(job.id).reason == "expired"


def test_one_call_looks_at_a_bounded_number(queue, registry, connections):
    """A backlog that has expired never holds the server up for long."""
    late = enqueue(queue, 250, "f", expires_after_ms=60_000)
    let_expire(connections, late)
    assert [queue.expire() for _ in range(4)] == [100, 100, 50, 0]
    assert queue.counts().dead == 250
