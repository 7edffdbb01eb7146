"""Redis 6.2 has no BLMPOP; replies are taken all the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas import embedded, keys
from bananas.errors import RedisUnavailable
from bananas.job import NewJob
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from tests.integration.gateway_player import Player
from tests.platform import until

REPLY = keys.reply("test")


@pytest.fixture
def old_redis(tmp_path: Path) -> Iterator[Connections]:
    """A server that knows no BLMPOP."""
    socket = tmp_path / "s"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--rename-command", "BLMPOP", ""]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([str(embedded.find_server()), *options], cwd=tmp_path, stdout=log, stderr=log)
    connections = Connections(f"unix://{socket}")

    def answers() -> bool:
        try:
            connections.ping()
        except RedisUnavailable:
            return False
        return True

    try:
        until(answers, 10.0, "the server to answer")
        yield connections
    finally:
        connections.close()
        server.terminate()
        server.wait(10)


def test_replies_are_taken_one_by_one_and_then_all(old_redis):
    """The first is waited for, the rest is taken with it."""
    player = Player(Queue(old_redis), Registry(old_redis))
    player.deploy("hello")
    for n in range(3):
        player.queue.enqueue(NewJob("hello", str(n).encode(), reply_to=REPLY))
        claim = player.claim()
        player.settle(claim, result=claim.payload)
    assert [reply.result for reply in player.queue.replies(REPLY, 1.0, 10, ahead=1).pop()] == [b"0", b"1", b"2"]
    assert player.queue.replies(REPLY, 0.05, 10, ahead=1).pop() == []
