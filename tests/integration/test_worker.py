"""The claim loop with a real queue and fake sandboxes: how it claims, settles, drains and hands back."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import time
import weakref
from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from unittest.mock import Mock

import gevent
import pytest
from gevent.event import Event

from bananas import keys
from bananas.job import Claim, JobState, NewJob, Outcome
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec, RetrySpec
from bananas.testing import FakeSandboxFactory, ManualClock
from runner import heartbeat, worker
from runner.crew import Crew
from runner.executor import Executor, Running
from runner.gate import Gate
from runner.heartbeat import InFlight
from runner.pool import SandboxPool, profile_of
from runner.worker import Bell, Inbox, Worker
from tests.bells import rings

SPEC = PoolSpec(concurrency=4)


class InThread(Queue):
    """Waits in a thread, since nothing has patched the sockets of the tests."""

    def step_on_ring(self, *args):
        return gevent.get_hub().threadpool.apply(super().step_on_ring, args)


class Rig:
    """A worker without a process around it."""

    def __init__(self, url: str) -> None:
        self.connections = Connections(url)
        self.queue = InThread(self.connections)
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


@pytest.fixture
def bell(rig: Rig) -> Iterator[Bell]:
    bell = Bell(lambda role, e: rig.crashes.append((role, e)), rig.pool, rig.worker)
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


def test_what_nobody_began_still_expires(rig):
    """A claim whose place is gone is no attempt: ``expires_after`` goes on."""
    rig.worker.start()
    job = rig.queue.enqueue(NewJob("echo", b"1", expires_after_ms=3_600_000)).id
    redis = rig.connections.commands
    until_ms = redis.zscore(keys.EXPIRING, job)
    rig.worker.promise("default", 4)
    step = rig.queue.step_on_ring("r", 30_000, "default", 4, 5.0)
    assert redis.zscore(keys.EXPIRING, job) is None
    rig.worker.claiming = False
    rig.worker.kept("default", 0.0, step)
    rig.until(lambda: rig.queue.show(job).state is JobState.PENDING)
    assert redis.zscore(keys.EXPIRING, job) == until_ms


def test_a_job_that_is_cancelled_in_the_moment_of_its_claim_does_not_run(rig):
    """The message may come before the claim that it is about: it is kept until then."""
    rig.worker.start()
    job = rig.queue.enqueue(NewJob("echo", b"1")).id
    rig.worker.promise("default", 4)
    step = rig.queue.step_on_ring("r", 30_000, "default", 4, 5.0)
    rig.queue.cancel(job)
    followed: list[Running] = []
    inbox = Inbox(lambda *_: None, rig.queue, rig.in_flight, "r", lambda: None, lambda _: None, followed.append)
    inbox.run_once()
    assert len(rig.in_flight) == 0
    rig.worker.kept("default", time.monotonic(), step)
    [cancelled] = rig.in_flight.all()
    assert cancelled.abandoned == "cancelled"
    rig.until(lambda: len(rig.in_flight) == 0)
    assert rig.factory.created == []
    assert rig.queue.show(job).state is JobState.CANCELLED


def test_messages_for_nobody_are_forgotten(monkeypatch):
    """Those for an attempt that is over never find one: they are few, and for a short time."""
    monkeypatch.setattr(heartbeat, "_MOST_EARLY", 2)
    heard: list[str] = []
    in_flight = InFlight()
    for job in ("a", "b", "c"):
        in_flight.tell(job, 1, lambda running: heard.append(running.claim.id))

    def begin(job: str, token: int = 1) -> None:
        claim = Claim(job, token, "f", "v", "default", "normal", b"1", 1000, RetrySpec(), 0, 0, 0, 0, 1000)
        in_flight.add(Running(claim, 0.0))

    begin("a")
    begin("b", 2)
    assert heard == []
    begin("b")
    assert heard == ["b"]
    monkeypatch.setattr(heartbeat, "_EARLY_S", 0.0)
    begin("c")
    assert heard == ["b"]


def test_a_drain_does_not_wait_for_a_redis_that_hangs(rig):
    """What calls waiting claims off is sent besides: the drain has its own deadline."""
    answered = Event()

    class Hanging(Queue):
        def call_off(self, runner, pools):
            assert answered.wait(20)
            super().call_off(runner, pools)

    rig.worker._queue = Hanging(rig.connections)
    rig.worker.promise("default", 4)
    assert not rig.worker.drain(0.01)
    assert not answered.is_set()
    answered.set()
    rig.until(lambda: rig.connections.commands.exists(keys.wake("r")))
    rig.worker.kept("default", 0.0, None)
    assert rig.worker.drain(20.0)


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


def test_what_a_step_brought_long_ago_is_not_run_either(rig, monkeypatch):
    """The process stood still between the question and its answer."""
    slept_s = [0.0]
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + sum(slept_s)))

    class Sleepy(Queue):
        def step(self, *args):
            step = super().step(*args)
            if step.claims and len(slept_s) == 1:
                slept_s.append(16.0)
            return step

    rig.worker._queue = Sleepy(rig.connections)
    job = rig.queue.enqueue(NewJob("echo", b"1")).id
    rig.worker.start()
    rig.until(lambda: rig.queue.show(job).state is JobState.COMPLETED)
    outcomes = [json.loads(line)["outcome"] for line in rig.queue.show(job).history]
    assert outcomes == [Outcome.HANDED_BACK, Outcome.OK]


def test_a_step_leaves_the_places_that_are_promised(rig):
    """A claim that waits may be answered at any moment, so nobody else fills its places."""
    assert rig.worker.places(rig.pool) == SPEC.concurrency
    rig.worker.promise("default", 3)
    assert rig.worker.places(rig.pool) == SPEC.concurrency - 3
    rig.worker.kept("default", 0.0, None)
    assert rig.worker.places(rig.pool) == SPEC.concurrency


def test_a_crew_keeps_nothing_of_what_is_done():
    """Payloads, output and secrets of an attempt go with it, not with the next one of its greenlet."""
    crew = Crew(lambda _: None)
    pieces = []
    for _ in range(2):
        work = Mock()
        pieces.append(weakref.ref(work))
        crew.run(work)
        with gevent.Timeout(20):
            while not work.called:
                gevent.sleep(0.001)
        del work
        gevent.sleep(0.001)
        gc.collect()
    assert [piece() for piece in pieces] == [None, None]


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
