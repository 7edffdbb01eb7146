"""Progress from attempts into their records, over a real queue: rarely, together, and never in a result's way."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence

import gevent
import pytest

from bananas.errors import RedisUnavailable
from bananas.job import Attempt, Claim, Decision, NewJob, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import Bundles, Deployment, FunctionSpec
from runner.executor import Running
from runner.progress import ProgressTeller

LEASE_MS = 30_000


class CountingQueue(Queue):
    """The real queue; it counts the calls, and can be told to be out of reach."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        self.calls: list[int] = []
        self.is_away = False

    def progress(self, runner: str, items: Sequence[tuple[str, int, bytes]]) -> list[bool]:
        self.calls.append(len(items))
        if self.is_away:
            raise RedisUnavailable("told to be away")
        return super().progress(runner, items)


class Rig:
    """A queue with claimed jobs, and the service."""

    def __init__(self, connections: Connections, period_s: float = 0.2) -> None:
        self.queue = CountingQueue(connections)
        registry, sha = Registry(connections), hashlib.sha256(b"code").hexdigest()
        registry.put_bundle(sha, b"code")
        registry.deploy("f", Deployment(spec=FunctionSpec(), bundles=Bundles(code=sha), abi="x"))
        self.crashes: list[tuple[str, BaseException]] = []
        self.teller = ProgressTeller(lambda role, e: self.crashes.append((role, e)), self.queue, "r", period_s)
        self.teller.start()

    def claim(self, count: int) -> list[Running]:
        for _ in range(count):
            self.queue.enqueue(NewJob("f", b"1"))
        return [Running(claim, time.monotonic()) for claim in self._step([], count)]

    def tell(self, running: Running, text: bytes) -> None:
        running.progress = text
        self.teller.told(running)

    def end(self, running: Running, action: str = "complete") -> list[bool]:
        running.over = True
        outcome = Outcome.OK if action == "complete" else Outcome.ERROR
        attempt = Attempt(running.claim.token, outcome, "r", 0)
        settlement = Settlement(running.claim, attempt, Decision(action), b"1", progress=running.untold or b"")
        return self.queue.step("r", LEASE_MS, [settlement], []).settled

    def _step(self, settlements: list[Settlement], free: int) -> list[Claim]:
        return self.queue.step("r", LEASE_MS, settlements, [("default", free)]).claims

    def shown(self, running: Running) -> bytes | None:
        return self.queue.show(running.claim.id).progress

    def until(self, condition: Callable[[], bool]) -> None:
        with gevent.Timeout(10):
            while not condition():
                gevent.sleep(0.005)


@pytest.fixture
def rig(connections: Connections) -> Iterator[Rig]:
    rig = Rig(connections)
    yield rig
    rig.teller.stop(1)
    assert rig.crashes == []


def test_progress_is_in_the_record_soon(connections):
    """The first value at once, however long the period is; the record shows it while the attempt runs."""
    rig = Rig(connections, period_s=3600)
    [running] = rig.claim(1)
    rig.tell(running, b'{"done":1}')
    rig.until(lambda: rig.shown(running) == b'{"done":1}')
    assert running.untold is None
    rig.teller.stop(1)
    assert rig.crashes == []


def test_all_attempts_share_a_call_and_each_value_but_the_latest_is_skipped(rig):
    """However many tell, however often: one call per period."""
    attempts = rig.claim(50)
    began = time.monotonic()
    for n in range(200):
        for running in attempts:
            rig.tell(running, b"%d" % n)
        gevent.sleep(0.002)
    rig.until(lambda: all(running.untold is None for running in attempts))
    assert {rig.shown(running) for running in attempts} == {b"199"}
    assert len(rig.queue.calls) <= 2 + (time.monotonic() - began) / 0.2
    assert max(rig.queue.calls) == 50


def test_nothing_told_costs_nothing(rig):
    """Idle, and when the same is told again."""
    [running] = rig.claim(1)
    rig.tell(running, b"1")
    rig.until(lambda: running.untold is None)
    rig.tell(running, b"1")
    gevent.sleep(0.5)
    assert sum(rig.queue.calls) == 1


@pytest.mark.parametrize("action", ["complete", "retry", "dead", "back"])
def test_what_was_told_last_is_in_the_record_however_the_attempt_ends(rig, action):
    """It rides on the settlement, also when the service has not had its turn, or no Redis."""
    rig.queue.is_away = True
    [running] = rig.claim(1)
    rig.tell(running, b'"last"')
    gevent.sleep(0.05)
    assert rig.end(running, action) == [True]
    assert rig.shown(running) == b'"last"'


def test_an_unreachable_redis_is_waited_out(rig):
    """The latest value arrives when Redis is back, and each period has one try."""
    [running] = rig.claim(1)
    rig.queue.is_away = True
    rig.tell(running, b"1")
    rig.until(lambda: len(rig.queue.calls) == 2)
    rig.tell(running, b"2")
    rig.queue.is_away = False
    rig.until(lambda: rig.shown(running) == b"2")


def test_an_attempt_that_is_not_the_jobs_any_more_changes_nothing(rig):
    """After its end, and after a later attempt began, what comes late is refused."""
    [running] = rig.claim(1)
    assert rig.end(running, "back") == [True]
    [again] = [Running(claim, time.monotonic()) for claim in rig._step([], 1)]
    assert again.claim.id == running.claim.id
    rig.tell(again, b'"new"')
    running.over = False  # as if it did not know
    rig.tell(running, b'"old"')
    rig.until(lambda: again.untold is None)
    assert rig.shown(again) == b'"new"'
    assert running.progress_kept is None


def test_a_new_attempt_begins_without_progress(rig):
    """The record never shows the progress of an attempt as that of the next."""
    [running] = rig.claim(1)
    rig.tell(running, b"1")
    rig.until(lambda: rig.shown(running) == b"1")
    rig.end(running, "back")
    assert rig.shown(running) == b"1"
    rig._step([], 1)
    assert rig.shown(running) is None
