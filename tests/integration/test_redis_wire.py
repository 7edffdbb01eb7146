"""The short way to Redis: one command per connection at a time, dead connections are noticed, nothing is sent twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from bananas.redis_client import Connections
from bananas.redis_wire import Wire
from tests.platform import until


@pytest.fixture
def wire(connections: Connections) -> Wire:
    return connections.wire


def kill_others(connections: Connections) -> None:
    """End every connection but the one that says so."""
    connections.commands.client_kill_filter(_type="normal", skipme=True)


def test_answers_belong_to_their_commands_with_more_callers_than_connections(wire: Wire) -> None:
    """200 callers share the 64 connections of a pool, and each gets its own answer."""
    with ThreadPoolExecutor(200) as callers:
        answers = list(callers.map(lambda n: wire.call("ECHO", str(n)), range(2000)))
    assert answers == [str(n).encode() for n in range(2000)]


def test_an_error_of_a_command_leaves_its_connection_in_use(wire: Wire) -> None:
    """What Redis refuses is no reason to connect again."""
    before = wire.call("CLIENT", "ID")
    with pytest.raises(redis.exceptions.ResponseError, match="unknown command"):
        wire.call("BANANA")
    assert wire.call("CLIENT", "ID") == before


def test_a_connection_that_died_while_idle_is_not_used_even_for_what_must_not_run_twice(
    wire: Wire, connections: Connections
) -> None:
    """A step after a restart of Redis works at once, without a repeat."""
    first = wire.call("CLIENT", "ID")
    kill_others(connections)
    assert wire.call("CLIENT", "ID") != first


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_broken_command_is_sent_again_only_where_that_is_allowed(connections: Connections, repeatable: bool) -> None:
    """The connection ends while an answer is awaited: one repeat if asked for, none otherwise."""
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(connections.blocking_wire.call, "BLPOP", "nothing", 9, repeatable=repeatable)
        until(lambda: blocked(connections) == 1, 5.0, "the call to be there")
        kill_others(connections)
        if repeatable:
            connections.commands.rpush("nothing", "something")
            assert call.result(20) == [b"nothing", b"something"]
        else:
            with pytest.raises(redis.exceptions.ConnectionError):
                call.result(20)
            assert blocked(connections) == 0


def blocked(connections: Connections) -> int:
    """Clients that wait in a pop."""
    return int(connections.commands.info("clients")["blocked_clients"])
