"""The janitor's audit: a healthy queue needs no repair; whatever else writes into Redis, the damage is healed."""

from __future__ import annotations

import pytest

from bananas import keys
from bananas.callbacks import Callbacks
from bananas.job import JobState, NewJob, Outcome
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import PoolSpec
from tests.bells import rings
from tests.integration.jobs import end, enqueue, ids, make_past, repairs
from tests.integration.test_queue import claim, deploy

pytestmark = pytest.mark.redis

LANE = keys.lane("default", "normal")


@pytest.fixture
def registry(connections: Connections) -> Registry:
    registry = Registry(connections)
    deploy(registry, "f")
    deploy(registry, "one", max_concurrency=1)
    return registry


def assert_healed(queue: Queue, kinds: dict[str, int]) -> None:
    """The damage is found, counted, and gone at the second look."""
    assert repairs(queue) == kinds
    assert repairs(queue) == {}
    counters = queue.counts().counters
    assert {kind: counters[f"repaired:{kind}"] for kind in kinds} == kinds


def assert_runs(queue: Queue, job_id: str) -> None:
    """The job goes its way to the end."""
    [c] = claim(queue, 1)
    assert c.id == job_id
    end(queue, [c], Outcome.OK)
    assert queue.show(job_id).state is JobState.COMPLETED


def test_a_healthy_queue_needs_no_repair(queue, registry, connections):
    """Jobs in every state and place."""
    enqueue(queue, 3, "f", delay_ms=60_000)
    enqueue(queue, 3, "one")
    end(queue, claim(queue, 1), Outcome.PERMANENT)
    claim(queue, 1)
    end(queue, claim(queue, 0), Outcome.OK)
    enqueue(queue, 3, "f")
    queue.cancel(claim(queue, 1)[0].id)
    enqueue(queue, 1, "f", expires_after_ms=60_000)
    assert repairs(queue) == {}


def test_a_pending_job_that_is_in_no_lane_comes_back(queue, registry, connections):
    """Its lane was lost."""
    [job] = enqueue(queue, 1, "f")
    connections.commands.delete(LANE)
    assert_healed(queue, {"lane": 1})
    assert rings(queue, "default", 1)
    assert_runs(queue, job)


def test_a_lane_that_has_lost_its_head_gets_it_back_however_long_it_is(queue, registry, connections):
    """A long lane is searched only when the job should have been served before the lane's head."""
    job, *_ = enqueue(queue, 1, "f")
    connections.commands.delete(LANE)
    connections.commands.hincrby(keys.job(job), "enqueued", -60_000)
    enqueue(queue, 1100, "f")
    assert_healed(queue, {"lane": 1})
    assert_runs(queue, job)


def test_a_running_job_without_a_lease_comes_back(queue, registry, connections):
    """Nobody would ever reap it."""
    [job] = enqueue(queue, 1, "one")
    [old] = claim(queue)
    connections.commands.zrem(keys.LEASES, job)
    found = repairs(queue)
    assert found["lease"] == 1
    assert repairs(queue).keys() <= {"running"}
    assert queue.extend("runner", 1000, [(old.id, old.token)]) == [False]
    assert_runs(queue, job)


def test_a_scheduled_job_that_is_not_in_the_schedule_comes_back(queue, registry, connections):
    """With the time that it was due at."""
    [job] = enqueue(queue, 1, "f", delay_ms=60_000)
    due = connections.commands.zscore(keys.SCHEDULE, job)
    connections.commands.delete(keys.SCHEDULE)
    assert_healed(queue, {"schedule": 1})
    assert connections.commands.zscore(keys.SCHEDULE, job) == due


def test_a_job_that_was_set_aside_and_lost_comes_back(queue, registry, connections):
    """It would wait for ever."""
    enqueue(queue, 2, "one")
    [c] = claim(queue, 5)
    connections.commands.delete(keys.parked("one"))
    assert_healed(queue, {"parked": 1})
    end(queue, [c], Outcome.OK)
    assert len(claim(queue, 5)) == 1


def test_a_place_without_a_lease_is_given_free(queue, registry, connections):
    """In a function and in a pool, and those who waited for it are told."""
    registry.put_pool("default", PoolSpec(max_concurrency=1))
    [job] = enqueue(queue, 1, "one")
    for key in (keys.running("one"), keys.busy("default")):
        connections.commands.sadd(key, "ghost")
    connections.commands.delete(keys.bell("default"))
    assert_healed(queue, {"running": 2})
    assert rings(queue, "default", 1)
    assert_runs(queue, job)


def test_a_lost_place_of_a_running_job_is_taken_again(queue, registry, connections):
    """Else max_concurrency would be exceeded."""
    enqueue(queue, 2, "one")
    claim(queue)
    connections.commands.delete(keys.running("one"), keys.busy("default"))
    assert_healed(queue, {"running": 1})
    assert claim(queue) == []


def test_a_name_on_its_way_back_that_is_not_holds_up_nobody(queue, registry, connections):
    """A job that was called back, and whose record is gone."""
    first, second, third = enqueue(queue, 3, "one")
    [c] = claim(queue, 5)
    assert c.id == first
    end(queue, [c], Outcome.OK)
    connections.commands.delete(keys.job(second))
    assert claim(queue, 1) == [], "what is in the lane has no record"
    assert_healed(queue, {"called": 1})
    assert_runs(queue, third)


def test_finished_jobs_are_found_again(queue, registry, connections):
    """A dead letter can be listed, and a completed job's record will be swept."""
    dead, done = enqueue(queue, 2, "f")
    for c, outcome in zip(claim(queue, 2), (Outcome.PERMANENT, Outcome.OK), strict=True):
        end(queue, [c], outcome)
    connections.commands.delete(keys.DEAD, keys.DONE)
    assert_healed(queue, {"dead": 1, "done": 1})
    assert queue.counts().dead == 1
    make_past(connections, keys.DEAD, [dead])
    make_past(connections, keys.DONE, [done])
    assert queue.sweep() == 2


@pytest.mark.parametrize("place", [keys.DEAD, keys.DONE, keys.SCHEDULE, keys.LEASES])
def test_a_job_in_a_second_place_leaves_it(queue, registry, connections, place):
    """It is where its state says, once."""
    [job] = enqueue(queue, 1, "f")
    connections.commands.zadd(place, {job: 1})
    assert_healed(queue, {"stray": 1})
    assert not connections.commands.exists(place)
    assert_runs(queue, job)


@pytest.mark.parametrize("is_known", [True, False], ids=["place lost", "ended by an older release"])
def test_an_end_that_nobody_would_tell_is_told(queue, registry, connections, is_known):
    """Its place among the callbacks was lost, or it was settled by a release that knows none."""
    [job] = enqueue(queue, 1, "f", callback_url="http://example.com/")
    end(queue, claim(queue), Outcome.OK)
    connections.commands.delete(keys.CALLBACKS)
    if not is_known:
        connections.commands.hdel(keys.job(job), "cbstate", "cbtries", "cberr", "cbend")
    assert_healed(queue, {"callback": 1})
    [delivery] = Callbacks(connections).take(10, 1000).deliveries
    assert (delivery.job_id, delivery.id, delivery.number) == (job, f"{job}.1", 1)


@pytest.mark.parametrize(
    ("state", "is_kept"),
    [("scheduled", True), ("pending", True), ("processing", True), ("completed", False), ("failed", False)],
)
def test_an_old_version_does_not_end_before_its_jobs(queue, registry, connections, state, is_kept):
    """A job due in ten days, one whose pool has no runner this month: their code is still there when they run."""
    [job] = enqueue(queue, 1, "f", delay_ms=864_000_000 if state == "scheduled" else 0)
    if state not in ("scheduled", "pending"):
        claims = claim(queue)
        if state != "processing":
            end(queue, claims, Outcome.OK if state == "completed" else Outcome.PERMANENT)
    assert queue.show(job).state == state
    version = keys.version("f", registry.current("f").version)
    deploy(registry, "f", timeout_ms=7000)
    connections.commands.pexpire(version, 60_000)  # what time does
    assert repairs(queue) == {}
    assert (connections.commands.pttl(version) > 60_000) is is_kept


def test_half_a_record_is_dropped(queue, registry, connections):
    """Without its function nobody can run it."""
    [job] = enqueue(queue, 1, "f")
    connections.commands.hdel(keys.job(job), "fn")
    assert_healed(queue, {"fragment": 1})
    assert not connections.commands.exists(keys.job(job))
    assert claim(queue) == []
    assert queue.counts().counters["orphans"] == 1


def test_ids_without_a_record_harm_nobody(queue, registry, connections):
    """In a lane, the schedule and the leases: dropped by whoever meets them, and counted."""
    connections.commands.lpush(LANE, "ghost")
    connections.commands.zadd(keys.SCHEDULE, {"ghost": 1})
    connections.commands.zadd(keys.LEASES, {"ghost": 1})
    [job] = enqueue(queue, 1, "f")
    assert queue.promote()[0] == 1
    assert queue.reap() == (0, 0)
    assert ids(claim(queue, 9)) == [job]
    assert queue.counts().counters["orphans"] == 3


def test_a_round_looks_at_every_record_once_or_more(queue, registry):
    """In pieces, from cursor to cursor."""
    jobs = queue.enqueue_many([NewJob("f", b"1") for _ in range(300)])
    looked, cursor, rounds = 0, 0, 0
    while True:
        audit = queue.audit(cursor, 50)
        looked, cursor, rounds = looked + audit.looked, audit.cursor, rounds + 1
        if cursor == 0:
            break
    assert looked >= len(jobs)
    assert rounds > 1
