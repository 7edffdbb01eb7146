"""The short way to Redis: one command per connection at a time, dead connections are noticed, nothing is sent twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from bananas.redis_client import Connections
from bananas.redis_wire import Repeated, Wire
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


def test_commands_in_one_write_run_in_their_order_and_each_has_its_answer(wire: Wire) -> None:
    """Also behind one that blocks, and behind one that is refused."""
    assert wire.together(("RPUSH", "list", "a"), ("BLPOP", "list", 5), ("BANANA",), ("ECHO", "b"))[::3] == [1, b"b"]
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(wire.together, ("BLPOP", "list", 4), ("ECHO", "then"))
        wire.call("RPUSH", "list", "b")
        assert call.result(20) == [[b"list", b"b"], b"then"]
    [refused] = wire.together(("BANANA",))
    assert isinstance(refused, redis.exceptions.ResponseError)


def test_what_is_sent_ahead_is_answered_in_turn(connections: Connections) -> None:
    """No answer is lost or mixed up while commands are always some ahead of their answers."""
    pops = Repeated(connections.blocking_wire, ("BLPOP", "list", 5), 4)
    connections.commands.rpush("list", *range(50))
    assert [int(pops.next()[1]) for _ in range(50)] == list(range(50))
    until(lambda: blocked(connections) == 1, 20.0, "one to wait")
    connections.commands.rpush("list", "x")
    assert pops.next() == [b"list", b"x"]
    pops.close()
    until(lambda: blocked(connections) == 0, 20.0, "nobody to wait")


def test_a_repeated_command_goes_on_after_its_connection_broke(connections: Connections) -> None:
    """The caller hears of it once; the next call begins on another connection."""
    pops = Repeated(connections.blocking_wire, ("BLPOP", "list", 9), 4)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(pops.next)
        until(lambda: blocked(connections) == 1, 20.0, "the pop to be there")
        kill_others(connections)
        with pytest.raises(redis.exceptions.ConnectionError):
            call.result(20)
    connections.commands.rpush("list", "x")
    assert pops.next() == [b"list", b"x"]
    pops.close()


def blocked(connections: Connections) -> int:
    """Clients that wait in a pop."""
    return int(connections.commands.info("clients")["blocked_clients"])
