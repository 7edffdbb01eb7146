"""The one moment that no process test can hit on purpose: a registration that crosses a reconnect of the reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gevent
import pytest

from bananas import keys
from bananas.errors import RedisUnavailable, Unavailable
from bananas.job import Enqueued, JobState, NewJob, Reply
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from gateway.wait import Waiter, Waiters
from tests.integration.gateway_player import Player

pytestmark = pytest.mark.redis


class Interrupted(Queue):
    """The real queue; something happens between an enqueue and the moment at which its caller learns of it."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def enqueue(self, job: NewJob) -> Enqueued:
        """Enqueue, then be slow to say so."""
        enqueued = super().enqueue(job)
        self.meanwhile()
        return enqueued


@pytest.fixture
def queue(redis_url: str) -> Iterator[Interrupted]:
    connections = Connections(redis_url)
    queue = Interrupted(connections)
    Player(queue, Registry(connections)).deploy("hello")
    yield queue
    connections.close()


@pytest.fixture
def waiters(queue: Queue) -> Iterator[Waiters]:
    # Nothing here switches to the hub, so the reader is never begun: the test does what it would have done.
    waiters = Waiters(queue)
    yield waiters
    waiters.stop()


def test_a_reply_lost_before_the_caller_knows_that_it_waits_is_asked_for(queue, waiters):
    """The reader reconnected, saw nobody registered for the job, and its reply was gone."""
    player = Player(queue, Registry(queue._connections))

    def end_and_lose_the_reply() -> None:
        player.settle(player.claim(), result=b'"found"')
        assert len(queue.replies(waiters.reply_list, 1.0, 10, ahead=1).pop()) == 1
        waiters.epoch += 1

    queue.meanwhile = end_and_lose_the_reply
    job = NewJob("hello", b"1", reply_to=waiters.reply_list)
    with waiters.expect(job.id) as waiter:
        waiter.submit(job)
        reply = waiter.wait(0)
    assert reply is not None
    assert (reply.state, reply.result) == (JobState.COMPLETED, b'"found"')


class Broken:
    """A reply list whose connection breaks at the first pop; afterwards nothing comes."""

    def __init__(self, opened: list[str], reply_list: str) -> None:
        self._is_first = not opened
        opened.append(reply_list)

    def pop(self) -> list[Reply]:
        """Fail, or wait."""
        if self._is_first:
            raise RedisUnavailable("the connection broke")
        gevent.sleep(60)
        return []


def test_a_connection_that_broke_can_take_no_replies_any_more(queue, waiters, monkeypatch):
    """Pops that were sent ahead may still wait at the server, so waiters are told on another list from then on."""
    opened: list[str] = []
    monkeypatch.setattr(queue, "replies", lambda reply_list: Broken(opened, reply_list))
    job = NewJob("hello", b"1", reply_to=waiters.reply_list)
    with waiters.expect(job.id) as waiter:
        waiter.submit(job)
        with gevent.Timeout(20):
            while waiters.epoch == 0 or len(opened) < 2:
                gevent.sleep(0.01)
        before, now = opened
        assert before != now == waiters.reply_list
        lists = queue._connections.commands.hget(keys.job(job.id), "waiters").decode().split("\n")
        assert lists == [before, now]


def test_a_call_made_for_a_list_that_is_not_read_any_more_waits_on_the_present_one(queue, waiters):
    """Between the making of a job and its enqueuing the list may change."""
    job = NewJob("hello", b"1", reply_to=keys.reply("before"))
    with waiters.expect(job.id) as waiter:
        waiter.submit(job)
        lists = queue._connections.commands.hget(keys.job(job.id), "waiters").decode().split("\n")
        assert lists == [keys.reply("before"), waiters.reply_list]


def test_a_waiter_leaves_nothing_behind(queue, waiters):
    """Also when its request fails."""
    job = queue.enqueue(NewJob("hello", b"1"))

    def enter() -> Waiter:
        with waiters.expect(job.id) as waiter, waiters.expect(job.id, patient=False):
            assert len(waiters) == 2
            waiter.ask()
            raise KeyError

    with pytest.raises(KeyError):
        enter()
    assert len(waiters) == 0
    assert waiters._waiting == {}


def test_a_stop_answers_who_only_looks_and_fails_who_is_left(queue, waiters):
    """First the long polls, at the end of the grace the calls; and nobody comes in any more."""
    with waiters.expect("a", patient=False) as poll, waiters.expect("b") as call:
        waiters.let_go()
        assert (poll.is_over, call.is_over) == (True, False)
        assert poll.wait(0) is None
        waiters.stop()
        with pytest.raises(Unavailable, match="stopping"):
            call.wait(0)
    with pytest.raises(Unavailable, match="stopping"), waiters.expect("c"):
        pass
