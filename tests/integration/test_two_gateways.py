"""Waiters and jobs on different gateways: two real processes, and many waiters in a race with a fast runner."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bananas import keys
from bananas.job import Attempt, Decision, Enqueued, JobState, NewJob, Outcome, Settlement
from bananas.ports import free_port
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from tests.bells import rings
from tests.integration.gateway_player import SOON_S, Answer, Player, call
from tests.platform import Platform, until

pytestmark = pytest.mark.redis

#: Waiting processes, each with a reply list and connections of its own.
WAITERS = 4
#: Jobs that each of them waits for, in rounds.
ROUNDS, JOBS = 5, 500
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def two(empty_redis: str) -> Iterator[tuple[Platform, int, int]]:
    """Two gateways over one Redis, and their ports."""
    with Platform(empty_redis) as platform:
        other = free_port()
        platform.gateway()
        platform.gateway(BANANAS_PORT=str(other))
        yield platform, platform.port, other


@pytest.fixture
def player(two: tuple[Platform, int, int], redis_url: str) -> Player:
    """An empty Redis with a function and a live runner."""
    player = Player(two[0].queue, two[0].registry)
    player.deploy("hello")
    player.announce()
    return player


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """For clients that wait while the test plays the runner."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def invoke(port: int, key: str | None = None, body: bytes = b"1") -> Answer:
    headers = {} if key is None else {"Idempotency_Key": key}
    return call(port, "POST", "/functions/hello/invoke", body, **headers)


def waits(player: Player, job_id: str, n: int) -> None:
    """Until that many gateway processes are registered with the job."""
    redis = player.registry._redis
    until(lambda: len((redis.hget(keys.job(job_id), "waiters") or b"").split()) == n, SOON_S, f"{n} gateways to wait")


def test_a_waiter_on_another_gateway_than_the_submitters_is_woken(two, player, pool):
    """Whoever asks whichever gateway gets the end, as soon as it is there."""
    _, here, there = two
    job = call(here, "POST", "/jobs", b'{"name":"hello","payload":7}').json["id"]
    polls = [pool.submit(call, port, "GET", f"/jobs/{job}?wait=50", timeout_s=60) for port in (here, there, there)]
    waits(player, job, 2)
    assert not any(poll.done() for poll in polls)
    player.settle(player.claim(), result=b'"done"')
    for poll in polls:
        assert (poll.result(SOON_S).json["status"], poll.result().json["result"]) == ("completed", "done")


def test_a_caller_on_one_gateway_is_woken_by_a_cancel_on_the_other(two, player, pool):
    """The end of a job finds its waiter wherever it comes from."""
    _, here, there = two
    answer = pool.submit(invoke, here)
    claim = player.claim()
    assert call(there, "DELETE", f"/jobs/{claim.id}").status == 200
    assert (answer.result(SOON_S).status, answer.result().json["code"]) == (409, "job-cancelled")


# -- synchronous calls with an Idempotency-Key --------------------------------------------------------------------


def test_calls_with_the_same_key_share_one_run_and_its_result(two, player, pool):
    """At the same time on two gateways, and later; the first one's body counts."""
    _, here, there = two
    first = pool.submit(invoke, here, "order-7", b"1")
    claim = player.claim()
    second = pool.submit(invoke, there, "order-7", b"2")
    waits(player, claim.id, 2)
    assert claim.payload == b"1"
    player.settle(claim, result=b'{"n":  1}')
    third = pool.submit(invoke, there, "order-7", b"3")
    for answer, duplicate in ((first, None), (second, "true"), (third, "true")):
        got = answer.result(SOON_S)
        assert (got.status, got.body, got.headers["Bananas-Job-Id"]) == (200, b'{"n":  1}', claim.id)
        assert got.headers["Bananas-Duplicate"] == duplicate
    assert player.queue.counts().counters["enqueued:hello"] == 1
    polled = call(here, "POST", "/jobs", b'{"name":"hello"}', Idempotency_Key="order-7")
    assert (polled.status, polled.json["id"], polled.json["status"]) == (200, claim.id, "completed")


def test_a_call_that_failed_answers_the_same_to_its_key(two, player, pool):
    """One attempt, one outcome, however often it is asked for."""
    _, here, there = two
    first = pool.submit(invoke, here, "bad")
    player.settle(player.claim(), Outcome.ERROR, error={"type": "ValueError", "message": "boom"})
    again = invoke(there, "bad")
    for got in (first.result(SOON_S), again):
        assert (got.status, got.json["code"], got.json["detail"]) == (500, "handler-error", "ValueError: boom")


def test_a_keyed_call_outlives_its_client_who_may_come_back(two, player, pool):
    """Without a key a hang-up cancels the job; with one it goes on, and the next call gets its result."""
    _, here, there = two
    with pytest.raises(TimeoutError):
        call(here, "POST", "/functions/hello/invoke", b"1", timeout_s=0.3, Idempotency_Key="again")
    claim = player.claim()
    back = pool.submit(invoke, there, "again")
    waits(player, claim.id, 2)
    assert player.queue.show(claim.id).state is JobState.PROCESSING
    player.settle(claim, result=b'"kept"')
    assert (back.result(SOON_S).status, back.result().body) == (200, b'"kept"')


def test_a_key_does_not_stand_for_a_call_that_could_not_be(two, player, pool):
    """Without a runner nothing is queued, but what was run before is answered; a wrong key is told."""
    _, here, _ = two
    player.registry.retire("player")
    refused = invoke(here, "later")
    assert (refused.status, refused.json["code"]) == (503, "no-live-runner")
    assert player.queue.counts().counters == {}
    player.announce()
    answer = pool.submit(invoke, here, "later")
    claim = player.claim()
    player.settle(claim, result=b"1")
    assert answer.result(SOON_S).status == 200
    player.registry.retire("player")
    until(lambda: invoke(here, "other").status == 503, SOON_S, "the gateway to miss the runner")
    again = invoke(here, "later")
    assert (again.status, again.json, again.headers["Bananas-Duplicate"]) == (200, 1, "true")
    wrong = invoke(here, "k" * 201)
    assert (wrong.status, wrong.json["code"]) == (422, "invalid-request")


# -- no lost wake-up ----------------------------------------------------------------------------------------------


class Waiting:
    """What a gateway process does, by hand: registers, reads its reply list, and counts what comes."""

    def __init__(self, url: str) -> None:
        self.connections = Connections(url)
        self.queue = Queue(self.connections)
        self.replies = keys.reply(f"test-{id(self)}")
        self.got: Counter[str] = Counter()
        self.wrong: list[str] = []

    def submit(self, n: int) -> list[str]:
        """Jobs whose ends are wanted here; Redis is told in the same step."""
        answers = self.queue.enqueue_many([NewJob("hello", b"1", reply_to=self.replies) for _ in range(n)])
        assert all(isinstance(answer, Enqueued) for answer in answers)
        return [answer.id for answer in answers if isinstance(answer, Enqueued)]

    def wait_for(self, ids: list[str]) -> None:
        """Ask for the ends of jobs that somebody else submitted, while they may be ending."""
        for job_id in ids:
            reply = self.queue.wait(job_id, self.replies)
            if reply is not None:
                self._take(reply.id, reply.state, reply.result)

    def read(self, wanted: set[str], deadline_s: float) -> None:
        """Until all have come; never looks at a job by itself."""
        while wanted - self.got.keys() and time.monotonic() < deadline_s:
            for reply in self.queue.replies(self.replies, 1.0, 1000, ahead=1).pop():
                self._take(reply.id, reply.state, reply.result)

    def _take(self, job_id: str, state: JobState, result: bytes | None) -> None:
        self.got[job_id] += 1
        if (state, result) != (JobState.COMPLETED, f'"{job_id}"'.encode()):
            self.wrong.append(job_id)


def fast_runner(url: str, stop: threading.Event) -> None:
    """Claims a hundred at a time and reports them with the next claim, as fast as Redis lets it."""
    connections = Connections(url)
    queue, settlements = Queue(connections), list[Settlement]()
    while not stop.is_set():
        step = queue.step("fast", 60_000, settlements, [("default", 100)])
        assert all(step.settled)
        settlements = [
            Settlement(c, Attempt(c.token, Outcome.OK, "fast", 0), Decision("complete"), f'"{c.id}"'.encode())
            for c in step.claims
        ]
        if not settlements:
            rings(queue, "default", 0.2)
    connections.close()


@pytest.mark.usefixtures("untraced")
def test_no_wake_up_is_lost_in_ten_thousand_fast_jobs(redis_url: str) -> None:
    """Each waiter gets the end of its own jobs and of its neighbour's, though they end while it asks."""
    connections = Connections(redis_url)
    Player(Queue(connections), Registry(connections)).deploy("hello")
    waiters = [Waiting(redis_url) for _ in range(WAITERS)]
    stop, deadline_s = threading.Event(), time.monotonic() + DEADLINE_S
    submitted: list[dict[int, list[str]]] = [{} for _ in range(ROUNDS)]
    together = threading.Barrier(WAITERS)

    def gateway(number: int) -> None:
        me = waiters[number]
        for round_ in submitted:
            round_[number] = me.submit(JOBS)
            together.wait(DEADLINE_S)
            me.wait_for(round_[(number + 1) % WAITERS])
        mine = {job_id for round_ in submitted for n in (number, (number + 1) % WAITERS) for job_id in round_[n]}
        me.read(mine, deadline_s)
        assert set(me.got) == mine, f"{len(mine - me.got.keys())} of {len(mine)} ends did not come"

    with ThreadPoolExecutor(WAITERS + 1) as threads:
        runner = threads.submit(fast_runner, redis_url, stop)
        gateways = [threads.submit(gateway, number) for number in range(WAITERS)]
        try:
            for future in gateways:
                future.result(DEADLINE_S)
        finally:
            stop.set()
        runner.result(SOON_S)
    assert [waiter.wrong for waiter in waiters] == [[]] * WAITERS
    assert sum(len(ids) for round_ in submitted for ids in round_.values()) == WAITERS * ROUNDS * JOBS == 10_000
    # And nobody is told of an end twice.
    assert max(count for waiter in waiters for count in waiter.got.values()) == 1
    for waiter in waiters:
        waiter.connections.close()
    connections.close()
