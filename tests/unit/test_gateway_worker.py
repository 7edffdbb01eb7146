"""Which connections a gateway process ends by itself, and what becomes of their requests."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import gevent.socket
import pytest
from gevent import GreenletExit
from gevent.event import Event
from gunicorn.config import Config
from gunicorn.glogging import Logger

from bananas.queue import Queue
from bananas.redis_client import Connections
from gateway import hangup
from gateway.answers import Answer
from gateway.asked import current
from gateway.direct import Direct
from gateway.front import Front
from gateway.traffic import Traffic
from gateway.wait import Waiters
from gateway.worker import QUIET_S, Worker

KEEPALIVE_S = 75
SOON_S = 20.0
REQUEST = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Not running: its sign of life is given by hand."""
    config = Config()
    config.set("keepalive", KEEPALIVE_S)
    worker = Worker(1, os.getppid(), [], None, 30, config, Logger(config))
    yield worker
    worker.tmp.close()


def test_only_connections_that_were_idle_for_long_get_no_further_request(worker):
    """Looked at with each sign of life, so that no request needs a timer of its own."""
    with ExitStack() as stack:
        now_s = time.monotonic()
        ends = []
        for idle_s in (2 * KEEPALIVE_S, KEEPALIVE_S + 1, 0):
            ours, client = map(stack.enter_context, socket.socketpair())
            worker._idle[ours] = now_s - idle_s
            ends.append((ours, client))
        worker.notify()
        ours, client = ends.pop()
        client.sendall(b"GET")
        assert ours.recv(9) == b"GET"
        assert [ours.recv(9) for ours, _ in ends] == [b"", b""]


class Served:
    """A client's connection to a worker whose calls all end in ``view``."""

    def __init__(self, worker: Worker, view: Callable[[], Answer]) -> None:
        front = Front([], Traffic(lambda _counts: None), list)
        direct = Direct(front, {"/jobs": ("jobs.submit", view)}, view, lambda *_: [])
        waiters = Waiters(Queue(Connections("redis://127.0.0.1:1")))  # nobody waits, so nobody connects
        worker.wsgi = SimpleNamespace(wsgi_app=direct, extensions={"bananas.waiters": waiters})
        self.listener = gevent.socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.client = gevent.socket.create_connection(self.listener.getsockname(), timeout=SOON_S)
        self.ours, address = self.listener.accept()
        self.greenlet = gevent.spawn(worker.handle, self.listener, self.ours, address)
        gevent.idle()  # it waits for a request now

    def rest(self) -> bytes:
        """All that is still answered."""
        return b"".join(iter(lambda: self.client.recv(1 << 16), b""))

    def close(self) -> None:
        self.client.close()
        self.greenlet.join(SOON_S)
        self.listener.close()
        assert self.greenlet.dead


@pytest.fixture
def serve(worker) -> Iterator[Callable[[Callable[[], Answer]], Served]]:
    """Makes one of them."""
    with ExitStack() as stack:

        def make(view: Callable[[], Answer]) -> Served:
            served = Served(worker, view)
            stack.callback(served.close)
            return served

        yield make


def test_a_request_that_came_when_its_connection_was_ended_is_answered_as_the_last(worker, serve):
    """Its client is still there, although nothing more is read from it."""

    def view() -> Answer:
        gone = Event()
        with hangup.watched(current().environ, gone.set):
            return Answer(b"gone" if gone.wait(0.1) else b"waited for", media="text/plain")

    served = serve(view)
    served.client.sendall(REQUEST)
    worker._idle[served.ours] -= 2 * KEEPALIVE_S
    worker.notify()
    answer = served.rest()
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nwaited for")


def test_requests_sent_ahead_leave_others_their_turn(serve):
    """A client that sends without a pause cannot keep the process for itself."""
    turns: list[int] = []
    answered = []

    def view() -> Answer:
        answered.append(1)
        if len(answered) == 1:
            gevent.spawn(lambda: turns.append(len(answered)))
        return Answer(b"")

    served = serve(view)
    served.client.sendall(100 * REQUEST)
    served.client.shutdown(socket.SHUT_WR)
    assert served.rest().count(b"HTTP/1.1 200") == 100
    assert turns[0] < 100


def test_a_request_that_is_ended_with_its_process_is_the_last_of_its_connection(serve):
    """The answer to the next one would be taken for its own."""
    answered = []

    def view() -> Answer:
        if not answered:
            answered.append(1)
            raise GreenletExit
        return Answer(b"")

    served = serve(view)
    served.client.sendall(2 * REQUEST)
    assert served.rest() == b""


def test_an_idle_connection_that_is_ended_is_no_error(worker, serve, caplog):
    """It happens to each sooner or later."""
    served = serve(lambda: Answer(b""))
    worker._idle[served.ours] -= 2 * KEEPALIVE_S
    worker.notify()
    assert served.rest() == b""
    assert caplog.records == []


def test_at_a_stop_busy_clients_are_told_and_idle_ones_are_not_waited_for(worker, serve):
    """No request is lost that was on its way when the stop began, nor one in which the stop began."""
    served = serve(lambda: worker.handle_exit(signal.SIGTERM, None) or Answer(b""))
    served.client.sendall(REQUEST)
    assert b"\r\nConnection: close\r\n" in served.rest()
    busy, idle = serve(lambda: Answer(b"")), serve(lambda: Answer(b""))
    now_s = time.monotonic()
    worker._idle = {idle.ours: now_s - 2 * QUIET_S, busy.ours: now_s + SOON_S}  # which is not over by then
    worker.notify()
    assert idle.rest() == b""
    busy.client.sendall(REQUEST)
    assert b"\r\nConnection: close\r\n" in busy.rest()
