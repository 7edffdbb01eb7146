"""Scripts that work on many jobs at once write each set, list and counter once: nothing may get lost on the way."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from bananas import keys
from bananas.job import JobState, Outcome
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from tests.bells import rings
from tests.integration.jobs import LEASE_MS, enqueue, ids, make_past, repairs, settlement
from tests.integration.test_queue import deploy

pytestmark = pytest.mark.redis

#: More than the arguments of one command that a script puts together.
MANY = 1100


@pytest.fixture(autouse=True)
def hello(connections: Connections) -> None:
    deploy(Registry(connections), "hello")


def test_more_jobs_than_fit_into_one_command_are_taken_and_settled_in_one_step(
    queue: Queue, connections: Connections
) -> None:
    """Each is leased, counted, kept and told, however many there are; a janitor finds nothing to do."""
    redis, reply_to = connections.commands, keys.reply("me")
    enqueue(queue, MANY, "hello", reply_to=reply_to)
    claims = queue.step("runner", LEASE_MS, [], [("default", MANY)]).claims
    assert len(claims) == redis.zcard(keys.LEASES) == redis.scard(keys.running("hello")) == MANY
    assert repairs(queue) == {}
    ended = queue.step("runner", LEASE_MS, [settlement(c, Outcome.OK) for c in claims], []).settled
    assert ended == [True] * MANY
    assert redis.zcard(keys.DONE) == redis.llen(reply_to) == MANY
    assert redis.scard(keys.running("hello")) == redis.scard(keys.busy("default")) == redis.zcard(keys.LEASES) == 0
    assert queue.counts().counters["outcome:hello:ok"] == queue.counts().counters["enqueued:hello"] == MANY
    assert repairs(queue) == {}


def test_what_is_reported_twice_in_one_step_counts_once(queue: Queue) -> None:
    """The second report of an attempt finds no lease any more, also among others."""
    enqueue(queue, 2, "hello")
    one, other = queue.step("runner", LEASE_MS, [], [("default", 2)]).claims
    reports = [settlement(c, Outcome.OK) for c in (one, one, other)]
    assert queue.step("runner", LEASE_MS, reports, []).settled == [True, False, True]
    assert queue.counts().counters["outcome:hello:ok"] == 2


def test_a_job_that_cannot_be_settled_leaves_none_before_it_half_written(
    queue: Queue, connections: Connections
) -> None:
    """A record that a hand has broken ends the step with an error; who was settled before it is settled as a whole."""
    redis, reply_to = connections.commands, keys.reply("me")
    enqueue(queue, 2, "hello", reply_to=reply_to)
    first, broken = queue.step("runner", LEASE_MS, [], [("default", 2)]).claims
    redis.hset(keys.job(broken.id), "ttl", "soon")
    with pytest.raises(ResponseError, match="user_script"):
        queue.step("runner", LEASE_MS, [settlement(c, Outcome.OK) for c in (first, broken)], [])
    assert queue.show(first.id).state is JobState.COMPLETED
    assert redis.zscore(keys.DONE, first.id) is not None
    assert not redis.sismember(keys.running("hello"), first.id)
    assert [reply.id for reply in queue.replies(reply_to, 5, 10, ahead=1).pop()] == [first.id]


def test_a_job_that_cannot_be_claimed_takes_none_with_it(queue: Queue, connections: Connections) -> None:
    """Those before it are claimed as a whole, those behind it stay in their lane."""
    redis = connections.commands
    first, broken, *behind = enqueue(queue, 4, "hello")
    redis.hset(keys.job(broken), "token", "none")
    with pytest.raises(ResponseError, match="user_script"):
        queue.step("runner", LEASE_MS, [], [("default", 4)])
    assert redis.zscore(keys.LEASES, first) is not None
    assert redis.sismember(keys.running("hello"), first)
    assert rings(queue, "default", 5)
    assert ids(queue.step("runner", LEASE_MS, [], [("default", 4)]).claims) == behind


def test_a_job_that_cannot_become_due_takes_none_with_it(queue: Queue, connections: Connections) -> None:
    """Those before it are in their lane, those behind it stay in the schedule, and it is in nobody's way."""
    redis = connections.commands
    first, broken, *behind = enqueue(queue, 4, "hello", delay_ms=3_600_000)
    for at, job_id in enumerate((first, broken, *behind)):
        redis.zadd(keys.SCHEDULE, {job_id: at + 1}, xx=True)
    redis.set(keys.job(broken), "no record")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        queue.promote()
    assert redis.lrange(keys.lane("default", "normal"), 0, -1) == [first.encode()]
    assert redis.zrange(keys.SCHEDULE, 0, -1) == [job_id.encode() for job_id in behind]
    assert rings(queue, "default", 5)
    queue.promote()
    assert ids(queue.step("runner", LEASE_MS, [], [("default", 4)]).claims) == [first, *behind]


def test_a_full_redis_still_gives_out_what_is_queued(queue: Queue, connections: Connections) -> None:
    """What makes room again is let through: jobs that become due, claims, one and many at once, and their ends."""
    accepted = enqueue(queue, 4, "hello")
    delayed = enqueue(queue, 3, "hello", delay_ms=3_600_000)
    make_past(connections, keys.SCHEDULE, delayed)
    connections.commands.config_set("maxmemory", "1mb")
    try:
        assert queue.promote() == (3, None)
        claims = [c for n in (1, 6) for c in queue.step("runner", LEASE_MS, [], [("default", n)]).claims]
        assert sorted(ids(claims)) == sorted(accepted + delayed)
        assert all(queue.step("runner", LEASE_MS, [settlement(c, Outcome.OK) for c in claims], []).settled)
    finally:
        connections.commands.config_set("maxmemory", "0")
