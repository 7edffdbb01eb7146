"""max_concurrency of functions and pools against a real server: never exceeded, nothing leaks, nobody loses a turn."""

from __future__ import annotations

import threading
from random import Random
from typing import ClassVar

import pytest

from bananas import errors, keys
from bananas.job import Claim, JobState, NewJob, Outcome
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import PoolSpec
from tests.bells import rings
from tests.integration.jobs import LEASE_MS, enqueue, ids, settlement
from tests.integration.test_queue import claim, deploy, expire_lease, settle

pytestmark = pytest.mark.redis

#: Claims of the storm.
STORM = 10_000


@pytest.fixture
def registry(connections: Connections) -> Registry:
    registry = Registry(connections)
    registry.put_pool("gpu", PoolSpec())
    return registry


# -- functions ----------------------------------------------------------------------------------------------------


def test_a_function_never_has_more_attempts_than_its_max_concurrency(queue, registry):
    """What does not fit is set aside, says so, and lets other functions' jobs pass."""
    deploy(registry, "two", max_concurrency=2)
    deploy(registry, "free")
    waiting = enqueue(queue, 4, "two")
    [other] = enqueue(queue, 1, "free")
    claims = claim(queue, 10)
    assert ids(claims) == [*waiting[:2], other]
    record = queue.show(waiting[2])
    assert (record.state, record.is_parked) == (JobState.PENDING, True)
    assert claim(queue, 10) == []
    assert settle(queue, claims[0], Outcome.OK, b"1").settled == [True]
    assert ids(claim(queue, 10)) == [waiting[2]]
    assert not queue.show(waiting[2]).is_parked


def test_jobs_of_a_full_function_run_in_their_order_whoever_ends_first(queue, registry):
    """Two ends in two steps bring two jobs back; the older one still runs first."""
    deploy(registry, "two", max_concurrency=2)
    waiting = enqueue(queue, 8, "two")
    for c in claim(queue, 10):
        settle(queue, c, Outcome.OK, b"1")
    order = []
    for _ in range(6):
        [c] = claim(queue, 1)
        order.append(c.id)
        settle(queue, c, Outcome.OK, b"1")
    assert order == waiting[2:]


def test_a_step_calls_back_no_more_jobs_than_have_room(queue, registry, connections):
    """However many ends there are before the next claim, the rest stays aside and keeps no lane busy."""
    deploy(registry, "two", max_concurrency=2)
    enqueue(queue, 50, "two")
    for _ in range(2):
        for c in claim(queue, 10):
            settle(queue, c, Outcome.OK, b"1")
        assert connections.commands.llen(keys.lane("default", "normal")) == 2


def test_a_job_that_was_handed_back_keeps_its_turn(queue, registry):
    """Those that wait for the same place come after it, whatever makes room in between."""
    deploy(registry, "one", max_concurrency=1)
    first, second, third = enqueue(queue, 3, "one")
    [c] = claim(queue, 10)
    settle(queue, c, Outcome.HANDED_BACK)
    queue.cancel(second)
    [again] = claim(queue, 10)
    assert (again.id, again.token) == (first, 2)
    settle(queue, again, Outcome.OK, b"1")
    assert ids(claim(queue, 10)) == [third]


def test_lost_jobs_keep_their_turn(queue, registry, connections):
    """A dead runner's jobs go first, in the order in which they were accepted."""
    deploy(registry, "two", max_concurrency=2)
    waiting = enqueue(queue, 5, "two")
    claim(queue, 10)
    for age, job_id in enumerate(waiting):
        connections.commands.hset(keys.job(job_id), "enqueued", 1000 + age)
    for job_id in waiting[:2]:
        expire_lease(connections, job_id)
    assert queue.reap() == (2, 0)
    assert ids(claim(queue, 10)) == waiting[:2]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_runner_that_leaves_hands_its_jobs_back_in_their_order(queue, registry, connections, backwards):
    """Without any limit too, and in whatever order it reports them: the oldest is the next one again."""
    deploy(registry, "free")
    waiting = enqueue(queue, 5, "free")
    for age, job_id in enumerate(waiting):
        connections.commands.hset(keys.job(job_id), "enqueued", 1000 + age)
    back = [settlement(c, Outcome.HANDED_BACK) for c in claim(queue, 3)]
    queue.step("runner", LEASE_MS, back[::-1] if backwards else back, [])
    assert ids(claim(queue, 5)) == waiting


def test_a_pool_without_runners_holds_up_no_other_pool(queue, registry):
    """Jobs of one function wait for each pool by themselves."""
    deploy(registry, "one", max_concurrency=1, allow_pools=("gpu",))
    [first] = enqueue(queue, 1, "one")
    gpu = enqueue(queue, 2, "one", pool="gpu")
    [c] = claim(queue, 5)
    assert c.id == first
    assert claim(queue, 5, "gpu") == []
    here = enqueue(queue, 2, "one")
    assert claim(queue, 5) == []
    settle(queue, c, Outcome.OK, b"1")
    assert ids(claim(queue, 5)) == here[:1], "the older jobs wait in a pool that nobody serves"
    assert queue.show(gpu[0]).state is JobState.PENDING


def test_a_raised_a_lowered_and_a_removed_limit_hold_at_once(queue, registry):
    """A deploy decides for the jobs that wait, not for those that run."""
    deploy(registry, "f", max_concurrency=1)
    waiting = enqueue(queue, 9, "f")
    [first] = claim(queue, 9)
    deploy(registry, "f", max_concurrency=4)
    more = claim(queue, 9)
    assert ids(more) == waiting[1:4]
    deploy(registry, "f", max_concurrency=2)
    settle(queue, first, Outcome.OK, b"1")
    settle(queue, more[0], Outcome.OK, b"1")
    assert claim(queue, 9) == [], "two still run"
    assert registry.remove("f")
    assert ids(claim(queue, 9)) == waiting[4:]


def test_a_job_that_is_set_aside_still_expires_and_can_be_cancelled(queue, registry, connections):
    """expires_after counts wherever the job waits, and nothing of it stays behind."""
    deploy(registry, "one", max_concurrency=1)
    enqueue(queue, 1, "one")
    [late] = enqueue(queue, 1, "one", expires_after_ms=60_000)
    [unwanted] = enqueue(queue, 1, "one")
    [c] = claim(queue, 5)
    assert queue.show(late).is_parked
    connections.commands.zadd(keys.EXPIRING, {late: 1}, xx=True)
    assert queue.expire() == 1
    assert (queue.show(late).state, queue.show(late).reason) == (JobState.FAILED, "expired")
    queue.cancel(unwanted)
    settle(queue, c, Outcome.OK, b"1")
    assert claim(queue, 5) == []
    assert not connections.commands.exists(keys.parked("one"), keys.called("one"), keys.running("one"))


def test_a_long_row_of_jobs_that_wait_is_called_in_pieces_and_to_the_end(queue, registry, connections):
    """One step moves a bounded number; when the limit goes, all 2,300 run, in their order."""
    deploy(registry, "one", max_concurrency=1)
    waiting = enqueue(queue, 2300, "one")
    order = [c.id for _ in range(6) for c in claim(queue, 1)]
    assert connections.commands.zcard(keys.parked("one")) == 2299
    registry.remove("one")
    assert connections.commands.zcard(keys.parked("one")) == 1299
    while claims := claim(queue, 300):
        order += ids(claims)
        queue.step("runner", LEASE_MS, [settlement(c, Outcome.OK) for c in claims], [])
    assert order == waiting


# -- pools --------------------------------------------------------------------------------------------------------


def test_a_pool_never_has_more_attempts_than_its_max_concurrency_over_all_runners(queue, registry):
    """The runners' own places do not add up beyond it."""
    deploy(registry, "free")
    registry.put_pool("default", PoolSpec(max_concurrency=3))
    enqueue(queue, 6, "free")
    assert [len(queue.step(runner, LEASE_MS, [], [("default", 2)]).claims) for runner in "abc"] == [2, 1, 0]


def test_a_full_pool_rings_nobody_until_there_is_room(queue, registry):
    """No runner runs in circles, and none sleeps while there is room."""
    deploy(registry, "free")
    registry.put_pool("default", PoolSpec(max_concurrency=1))
    enqueue(queue, 3, "free")
    assert rings(queue, "default", 0.05)
    [c] = claim(queue, 5)
    assert claim(queue, 5) == []
    assert not rings(queue, "default", 0.05)
    settle(queue, c, Outcome.OK, b"1")
    assert rings(queue, "default", 0.05)
    [c] = claim(queue, 5)
    queue.cancel(c.id)
    assert rings(queue, "default", 0.05)
    claim(queue, 5)
    registry.put_pool("default", PoolSpec(max_concurrency=2))
    assert rings(queue, "default", 0.05)


# -- storm --------------------------------------------------------------------------------------------------------


class Storm:
    """Threads that claim, settle in every way, lose leases and cancel; watches the limits at each of their steps."""

    LIMITS: ClassVar = {"a": 3, "b": 20, "c": 60}
    POOL_LIMIT = 40

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.queue = Queue(connections)
        self.lock = threading.Lock()
        self.claimed = 0
        self.broken: list[str] = []

    def look(self) -> None:
        """Note every limit that is exceeded at this moment."""
        pipe = self.connections.commands.pipeline(transaction=True)
        for name in self.LIMITS:
            pipe.scard(keys.running(name))
        pipe.scard(keys.busy("gpu"))
        found = pipe.execute()
        for what, n, limit in zip(
            [*self.LIMITS, "pool gpu"], found, [*self.LIMITS.values(), self.POOL_LIMIT], strict=True
        ):
            if n > limit:
                self.broken.append(f"{what}: {n} of {limit}")

    def run(self, seed: int) -> None:
        """One runner until enough was claimed."""
        rng = Random(seed)
        mine: list[Claim] = []
        while self.claimed < STORM:
            if rng.random() < 0.3:
                names = rng.choices([*self.LIMITS], k=60)
                pool = rng.choice(["default", "gpu"])
                self.queue.enqueue_many([NewJob(name, b"1", pool=pool) for name in names])
            rng.shuffle(mine)
            cut = len(mine) * 3 // 5
            ended, mine = [settlement(c, rng.choice(OUTCOMES)) for c in mine[:cut]], mine[cut:]
            if mine and rng.random() < 0.2:
                self.connections.commands.zadd(keys.LEASES, {mine[0].id: 1}, xx=True)
                self.queue.reap()
            if mine and rng.random() < 0.1:
                self.cancel(mine[-1].id)
            step = self.queue.step(f"r{seed}", LEASE_MS, ended, [("default", 20), ("gpu", 20)])
            mine += step.claims
            with self.lock:
                self.claimed += len(step.claims)
            self.look()
        self.queue.step(f"r{seed}", LEASE_MS, [settlement(c, Outcome.OK) for c in mine], [])

    def cancel(self, job_id: str) -> None:
        """It may have ended meanwhile."""
        try:
            self.queue.cancel(job_id)
        except errors.JobFinished:
            return


OUTCOMES = [Outcome.OK, Outcome.OK, Outcome.ERROR, Outcome.PERMANENT, Outcome.START, Outcome.HANDED_BACK]


def test_after_a_storm_no_place_is_left_taken(registry, connections):
    """10,000 claims by four runners that end in every way: limits hold throughout, then all places are free."""
    registry.put_pool("gpu", PoolSpec(max_concurrency=Storm.POOL_LIMIT))
    for name, limit in Storm.LIMITS.items():
        deploy(registry, name, max_concurrency=limit, allow_pools=("gpu",))
    storm = Storm(connections)
    threads = [threading.Thread(target=storm.run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    assert not any(thread.is_alive() for thread in threads)
    assert storm.broken == []
    assert storm.claimed >= STORM
    assert drain(storm.queue, connections) > 0
    left = [key for key in connections.commands.keys(keys.PREFIX + "*") if key.split(b":")[1] in LEFT]
    assert left == []


LEFT = {b"running", b"busy", b"parked", b"called", b"leases", b"lane", b"schedule"}


def drain(queue: Queue, connections: Connections) -> int:
    """Run all that is left, retries at once; returns how many attempts that took."""
    done = 0
    r = connections.commands
    for _ in range(5000):
        waiting = [member for member, _ in r.zrange(keys.SCHEDULE, 0, -1, withscores=True)]
        if waiting:
            r.zadd(keys.SCHEDULE, dict.fromkeys(waiting, 1), xx=True)
            queue.promote(10_000)
        claims = queue.step("r", LEASE_MS, [], [("default", 100), ("gpu", 100)]).claims
        if not claims and not waiting:
            return done
        done += len(claims)
        queue.step("r", LEASE_MS, [settlement(c, Outcome.OK) for c in claims], [])
    raise AssertionError("the queue does not run empty")
