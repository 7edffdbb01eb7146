"""The gateway's app over a real Redis, without a server; the runner is played by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from flask.testing import FlaskClient

from bananas import health
from bananas.dead_letters import DeadLetters
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.schedules import Schedules
from bananas.secrets import SecretBox, Secrets
from bananas.settings import Settings
from gateway.app import create_app
from gateway.wait import Waiters
from tests.integration.gateway_player import Player


@pytest.fixture
def player(connections: Connections) -> Player:
    player = Player(Queue(connections), Registry(connections))
    player.deploy("hello")
    return player


@pytest.fixture
def app_client() -> Iterator[Callable[..., FlaskClient]]:
    """Makes clients of apps with the given settings; their reply readers end with the test."""
    made: list[Waiters] = []

    def make(connections: Connections, **settings: Any) -> FlaskClient:
        queue = Queue(connections)
        made.append(Waiters(queue))
        config = Settings(**settings)
        secrets = Secrets(connections, SecretBox.from_settings(config))
        rest = (secrets, DeadLetters(connections), Schedules(connections))
        parts = (queue, Registry(connections), made[-1], health.Health(connections), *rest)
        return create_app(config, *parts).test_client()

    yield make
    for waiters in made:
        waiters.stop()
    gevent.sleep(0)


@pytest.fixture
def client(app_client: Callable[..., FlaskClient], connections: Connections, player: Player) -> FlaskClient:
    return app_client(connections)
