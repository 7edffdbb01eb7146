"""The claim loop with a real queue and fake sandboxes: how it claims, settles, drains and hands back."""

from __future__ import annotations

import hashlib
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
from runner.executor import Executor
from runner.gate import Gate
from runner.heartbeat import InFlight
from runner.pool import SandboxPool, profile_of
from runner.worker import Worker

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
    assert rig.queue.ring("default", 0.1), "the ring it took must be passed on"
