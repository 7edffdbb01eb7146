"""A queue and the gateway over a real Redis, as an app or as a process; the runner is played by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from flask.testing import FlaskClient

from bananas.cli import main
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import Settings
from gateway.app import create_app
from gateway.parts import Parts
from gateway.wait import Waiters
from tests.integration.gateway_player import Player
from tests.platform import Platform

#: Runs one command; gives code, out and err.
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def queue(connections: Connections) -> Queue:
    return Queue(connections)


@pytest.fixture
def player(connections: Connections) -> Player:
    player = Player(Queue(connections), Registry(connections))
    player.deploy("hello")
    return player


@pytest.fixture
def app_client() -> Iterator[Callable[..., FlaskClient]]:
    """Makes clients of apps with the given settings; their reply readers end with the test."""
    made: list[Waiters] = []

    def make(connections: Connections, waiters_limit: int | None = None, **settings: Any) -> FlaskClient:
        queue, config = Queue(connections), Settings(**settings)
        waiters = Waiters(queue) if waiters_limit is None else Waiters(queue, limit=waiters_limit)
        made.append(waiters)
        return create_app(config, Parts.of(config, connections, waiters)).test_client()

    yield make
    for waiters in made:
        waiters.stop()
    gevent.sleep(0)


@pytest.fixture
def client(app_client: Callable[..., FlaskClient], connections: Connections, player: Player) -> FlaskClient:
    return app_client(connections)


@pytest.fixture(scope="module")
def platform(empty_redis: str) -> Iterator[Platform]:
    """One gateway process over the shared Redis."""
    with Platform(empty_redis) as platform:
        platform.gateway()
        yield platform


@pytest.fixture
def outside(platform: Platform, redis_url: str) -> Player:
    """Plays the runner of that gateway process, on an empty Redis with a function."""
    player = Player(platform.queue, platform.registry)
    player.deploy("hello")
    return player


@pytest.fixture
def bananas(platform: Platform, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs one command; gives code, out and err."""
    monkeypatch.setenv("BANANAS_URL", platform.url)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(args)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
