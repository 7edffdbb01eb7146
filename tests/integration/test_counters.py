"""Counters in Redis that no script raises: the traffic of gateways, and what goes with a function."""

from __future__ import annotations

from bananas import keys
from bananas.counters import Counters
from bananas.job import NewJob
from bananas.leftovers import Leftovers
from bananas.redis_client import Connections
from tests.integration.gateway_player import Player


def test_what_gateways_counted_adds_up(connections: Connections) -> None:
    """Each process tells what is new, so the sum is that of all."""
    counters = Counters(connections)
    counters.add_traffic({"http:jobs.submit:202": 2, "took_us:jobs.submit": 1500})
    counters.add_traffic({"http:jobs.submit:202": 1})
    assert counters.traffic() == {"http:jobs.submit:202": 3, "took_us:jobs.submit": 1500}


def test_counters_of_a_function_go_when_nothing_of_it_is_left(player: Player, connections: Connections) -> None:
    """While a job of it is listed they stay; those of other functions, of pools and of the installation always do."""
    player.deploy("old")
    for name in ("hello", "old"):
        player.queue.enqueue(NewJob(name, b"1"))
        player.settle(player.claim())
    told = {"start:default:old:cold:no_stem": 1, "start:default::spare:": 1, "run:default:5": 1, "retries": 1}
    connections.commands.hset(keys.COUNTERS, mapping=told)
    before = player.queue.counts().counters
    player.registry.remove("old")
    leftovers = Leftovers(connections)
    leftovers.look()
    assert player.queue.counts().counters == before
    # Its records are gone, and its list with them.
    for key in connections.commands.scan_iter(match=keys.job("*")):
        connections.commands.delete(key)
    for _ in range(4):
        leftovers.forget()
    leftovers.look()
    after = player.queue.counts().counters
    assert {name for name in before if name not in after} == {name for name in before if "old" in name.split(":")}
    assert len(before) - len(after) >= 4
