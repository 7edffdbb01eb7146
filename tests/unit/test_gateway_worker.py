"""Which connections a gateway process ends by itself."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from gateway.worker import Worker

KEEPALIVE_S = 75


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
