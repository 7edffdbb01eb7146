"""The claim loop with a real queue and fake sandboxes: how it claims, settles, drains and hands back."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from random import Random

import gevent
import pytest
from gevent.event import Event

from bananas import keys
from bananas.job import JobState, NewJob
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec
from bananas.testing import FakeSandboxFactory, ManualClock
from runner.crew import Crew
from runner.executor import Executor
from runner.gate import Gate
from runner.heartbeat import InFlight
from runner.pool import SandboxPool, profile_of
from runner.worker import Bell, Worker
from tests.bells import rings

SPEC = PoolSpec(concurrency=4)


class Rig:
    """A worker without a process around it."""

    def __init__(self, url: str) -> None:
        self.connections = Connections(url)
        self.queue = Queue(self.connections)
        registry = Registry(self.connections)
        sha = hashlib.sha256(b"code").hexdigest()
        registry.put_bundle(sha, b"code")
        for name in ("echo", "wait", "fail"):
            deployment = Deployment(spec=FunctionSpec(handler=f"h.{name}"), bundles=Bundles(code=sha), abi="x")
            registry.deploy(name, deployment)
        self.crashes: list[tuple[str, BaseException]] = []
        self.factory = FakeSandboxFactory({"h.echo": lambda event, context: event, "h.fail": lambda e, c: 1 / 0})
        self.pool = SandboxPool("default", SPEC, self.factory, Gate(2), ManualClock())
        self.in_flight = InFlight()
        executor = Executor(
            "r",
            registry.version,
            lambda pool, _: profile_of(pool, SPEC, "i", "s"),
            lambda _: {},
            ManualClock(),
            Random(0),
        )
        self.worker = Worker(
            lambda role, e: self.crashes.append((role, e)),
            self.queue,
            executor,
            {"default": self.pool},
            self.in_flight,
            "r",
            30.0,
            lambda step: None,
        )

    def until(self, condition: Callable[[], bool]) -> None:
        with gevent.Timeout(20):
            while not condition():
                gevent.sleep(0.001)


@pytest.fixture
def rig(redis_url: str) -> Iterator[Rig]:
    rig = Rig(redis_url)
    yield rig
    rig.worker.stop(1)
    rig.connections.close()
    assert rig.crashes == []


def test_a_backlog_is_drained_with_no_more_sandboxes_than_there_are_places(rig):
    """Claims stay within the free places at every moment, so warm sandboxes are kept and used again."""
    jobs = [rig.queue.enqueue(NewJob("echo", b"1")).id for _ in range(300)]
    rig.worker.start()
    rig.until(lambda: rig.queue.counts().counters.get("outcome:echo:ok") == len(jobs))
    assert len(rig.factory.created) <= SPEC.concurrency
    assert sum(sandbox.calls for sandbox in rig.factory.created) == len(jobs)
    assert not any(sandbox.terminated for sandbox in rig.factory.created)
    assert rig.pool.free == SPEC.concurrency
    rig.until(lambda: len(rig.in_flight) == 0)


def test_a_ring_starts_work_at_once(rig):
    """An idle worker does not wait for its own next look."""
    rig.worker.start()
    gevent.sleep(0)
    job = rig.queue.enqueue(NewJob("echo", b"7")).id
    rig.worker.rang("default")
    rig.until(lambda: rig.queue.show(job).state is JobState.COMPLETED)


def test_failures_go_to_the_schedule_and_the_worker_goes_on(rig):
    """A handler's error is an outcome, not trouble of the loop."""
    failing = rig.queue.enqueue(NewJob("fail", b"1")).id
    fine = rig.queue.enqueue(NewJob("echo", b"1")).id
    rig.worker.start()
    rig.until(lambda: rig.queue.show(fine).state is JobState.COMPLETED)
    rig.until(lambda: rig.queue.show(failing).state is JobState.SCHEDULED)
    assert rig.queue.show(failing).failures == 1


def test_a_claim_that_a_failover_forgot_and_gave_again_ends_the_attempt_before(rig):
    """Both attempts have one token, and only the later one may tell how the job ended."""
    calls: list[Event] = []

    def wait(event, context):
        calls.append(Event())
        number = len(calls)
        assert calls[-1].wait(10)
        return number

    rig.factory.handlers["h.wait"] = wait
    job = rig.queue.enqueue(NewJob("wait", b"1")).id
    rig.worker.start()
    rig.until(lambda: len(calls) == 1)
    [first] = rig.in_flight.all()
    redis = rig.connections.commands
    for key in (keys.running("wait"), keys.busy("default")):
        redis.srem(key, job)
    redis.zrem(keys.LEASES, job)
    redis.hset(keys.job(job), mapping={"state": "pending", "token": 0})
    redis.lpush(keys.lane("default", "normal"), job)
    rig.worker.rang("default")
    rig.until(lambda: len(calls) == 2)
    [second] = rig.in_flight.all()
    assert second is not first
    assert (second.claim.token, first.claim.token, bool(first.abandoned)) == (1, 1, True)
    calls[0].set()
    rig.until(lambda: rig.pool.free == SPEC.concurrency - 1)
    assert rig.in_flight.all() == [second]
    calls[1].set()
    rig.until(lambda: rig.queue.show(job).state is JobState.COMPLETED)
    assert rig.queue.show(job).result == b"2"
    rig.until(lambda: len(rig.in_flight) == 0)


def test_draining_worker_claims_nothing_more(rig):
    """After drain began, queued jobs stay queued for other runners."""
    rig.worker.start()
    assert rig.worker.drain(1.0)
    job = rig.queue.enqueue(NewJob("echo", b"1")).id
    rig.worker.rang("default")
    gevent.sleep(0.05)
    assert rig.queue.show(job).state is JobState.PENDING
    assert rings(rig.queue, "default", 0.1), "the ring it took must be passed on"


class InThread(Queue):
    """Waits in a thread, since nothing has patched the sockets of the tests."""

    def step_on_ring(self, *args):
        return gevent.get_hub().threadpool.apply(super().step_on_ring, args)


@pytest.fixture
def bell(rig: Rig) -> Iterator[Bell]:
    queue = InThread(rig.connections)
    bell = Bell(lambda role, e: rig.crashes.append((role, e)), queue, rig.pool, rig.worker, "r", 30.0)
    rig.worker.start()
    bell.start()
    rig.until(lambda: rig.connections.commands.info("clients")["blocked_clients"] == 1)
    yield bell
    assert rig.worker.drain(20.0)
    bell.stop(20)


def test_an_idle_worker_is_given_jobs_by_who_enqueues_them(rig, bell):
    """Nobody tells the worker to look: the ring itself claims, one after another and several at once."""
    for _ in range(3):
        job = rig.queue.enqueue(NewJob("echo", b"7")).id
        rig.until(lambda job=job: rig.queue.show(job).state is JobState.COMPLETED)
    jobs = [rig.queue.enqueue(NewJob("echo", b"1")).id for _ in range(50)]
    rig.until(lambda: all(rig.queue.show(job).state is JobState.COMPLETED for job in jobs))
    assert len(rig.factory.created) <= SPEC.concurrency
    rig.until(lambda: rig.pool.free == SPEC.concurrency)


def test_a_drain_ends_the_claim_that_waits(rig, bell):
    """It is over when the drain is, so no job can be given to a runner that has stopped."""
    assert rig.worker.drain(20.0)
    rig.until(lambda: rig.connections.commands.info("clients")["blocked_clients"] == 0)
    job = rig.queue.enqueue(NewJob("echo", b"1")).id
    assert rings(rig.queue, "default", 5), "nobody listens any more"
    assert rig.queue.show(job).state is JobState.PENDING


def test_what_a_waiting_claim_brings_too_late_goes_back_untouched(rig):
    """The drain began between the claim and its answer: another runner gets the job, and nothing counts against it."""
    rig.worker.start()
    job = rig.queue.enqueue(NewJob("echo", b"1")).id
    rig.worker.promise("default", 4)
    step = rig.queue.step_on_ring("r", 30_000, "default", 4, 5.0)
    assert [claim.id for claim in step.claims] == [job]
    rig.worker.claiming = False
    rig.worker.kept("default", 0.0, step)
    assert rig.worker.drain(20.0)
    rig.until(lambda: rig.queue.show(job).state is JobState.PENDING)
    record = rig.queue.show(job)
    assert (record.failures, record.losses, rig.factory.created) == (0, 0, [])


def test_what_a_waiting_claim_brought_long_ago_is_not_run(rig):
    """A runner that stood still may not be the only one with the job: it gives it back, and may get it anew."""
    rig.worker.start()
    rig.until(lambda: rig.worker._reference is not None)
    job = rig.queue.enqueue(NewJob("echo", b"1")).id
    rig.worker.promise("default", 4)
    step = rig.queue.step_on_ring("r", 30_000, "default", 4, 5.0)
    long_ago = dataclasses.replace(step, now_ms=step.now_ms - 16_000)
    rig.worker.kept("default", time.monotonic() - 60, long_ago)
    [stale] = rig.in_flight.all()
    assert stale.handed_back
    rig.until(lambda: rig.queue.show(job).state is JobState.COMPLETED)
    record = rig.queue.show(job)
    assert (record.token, record.failures, record.losses) == (2, 0, 0)


def test_a_step_leaves_the_places_that_are_promised(rig):
    """A claim that waits may be answered at any moment, so nobody else fills its places."""
    assert rig.worker.places(rig.pool) == SPEC.concurrency
    rig.worker.promise("default", 3)
    assert rig.worker.places(rig.pool) == SPEC.concurrency - 3
    rig.worker.kept("default", 0.0, None)
    assert rig.worker.places(rig.pool) == SPEC.concurrency


def test_a_crew_uses_its_greenlets_again_and_tells_of_a_crash():
    """As many greenlets as ran at once; one that fails is told of, and the others go on."""
    crashes: list[BaseException] = []
    ran: list[object] = []
    crew = Crew(crashes.append)
    go = Event()

    def work():
        ran.append(gevent.getcurrent())
        go.wait(20)

    for _ in range(3):
        crew.run(work)
    gevent.sleep(0)
    go.set()
    gevent.sleep(0.01)
    for _ in range(6):
        crew.run(work)
        gevent.sleep(0.001)
    with gevent.Timeout(20):
        while len(ran) < 9:
            gevent.sleep(0.001)
    assert len(set(map(id, ran))) == 3
    crew.run(lambda: 1 / 0)
    with gevent.Timeout(20):
        while not crashes:
            gevent.sleep(0.001)
    assert isinstance(crashes[0], ZeroDivisionError)
