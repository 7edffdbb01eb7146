"""Shares and turns, counted by claims: no priority starves, none takes more than its weight, lanes keep their order."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from bananas import keys
from bananas.job import NewJob
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import PRIORITIES, PoolSpec, Weights
from tests.bench import claims
from tests.integration.jobs import LEASE_MS, enqueue, ids, let_expire
from tests.integration.test_queue import claim, deploy

pytestmark = pytest.mark.redis

CLAIMS = 10_000
#: Of low, with the default weights: (16 + 4 + 1) / 1.
LOW_BOUND = 21


@pytest.fixture
def registry(connections: Connections) -> Registry:
    registry = Registry(connections)
    for name in ("gpu", "email"):
        registry.put_pool(name, PoolSpec())
    deploy(registry, "f", allow_pools=("gpu", "email"))
    return registry


def fill(queue: Queue, pool: str, weights: dict[str, int], claims: int) -> None:
    """Enough of every priority for that many claims under overload."""
    total = sum(weights.values())
    for priority, weight in weights.items():
        enqueue(queue, claims * weight // total + 50, "f", pool=pool, priority=priority)


def assert_shares(order: str, weights: dict[str, int]) -> None:
    """Within 2 % of each one's own share, and never passed by more of another priority than its weights allow."""
    total = sum(weights.values())
    for priority, weight in weights.items():
        expected = len(order) * weight / total
        assert abs(order.count(priority[0]) - expected) <= max(0.02 * expected, 1), (priority, order.count(priority[0]))
        turns = [-1, *(at for at, lane in enumerate(order) if lane == priority[0])]
        bound = sum(-(-other // weight) for other in weights.values())
        assert max(after - before for before, after in pairwise(turns)) <= bound, (priority, bound)


def test_shares_hold_within_2_percent_over_10_000_claims(queue, registry):
    """Under permanent overload 16 : 4 : 1, low at least once in 21."""
    weights = {"high": 16, "normal": 4, "low": 1}
    fill(queue, "default", weights, CLAIMS)
    order = ""
    while len(order) < CLAIMS:
        order += "".join(c.priority[0] for c in claim(queue, min(97, CLAIMS - len(order))))
    assert_shares(order, weights)


def test_three_pools_at_once_share_each_by_its_own_weights_and_slots(queue, registry):
    """What one pool has free, or how it is weighted, is nothing to another one."""
    weights = {
        "default": {"high": 16, "normal": 4, "low": 1},
        "gpu": {"high": 1, "normal": 1, "low": 1},
        "email": {"high": 3, "normal": 50, "low": 7},
    }
    slots = {"default": 7, "gpu": 1, "email": 3}
    for pool, mine in weights.items():
        registry.put_pool(pool, PoolSpec(weights=Weights(**mine)))
        fill(queue, pool, mine, 500 * slots[pool])
    order = dict.fromkeys(weights, "")
    rng = Random(4)
    for _ in range(500):
        pools = rng.sample([*slots.items()], 3)
        got = queue.step("runner", LEASE_MS, [], pools).claims
        for pool, n in pools:
            mine = "".join(c.priority[0] for c in got if c.pool == pool)
            assert len(mine) == n
            order[pool] += mine
    for pool, mine in weights.items():
        assert_shares(order[pool], mine)


def test_low_waits_at_most_21_claims_however_the_other_lanes_come_and_go(queue, registry):
    """Lanes that run empty and fill again gain nothing on one that waited all the time."""
    rng = Random(7)
    enqueue(queue, 400, "f", priority="low")
    order = ""
    while order.count("l") < 150:
        for priority in ("high", "normal"):
            if rng.random() < 0.4:
                enqueue(queue, rng.choice([1, 3, 40]), "f", priority=priority)
        order += "".join(c.priority[0] for c in claim(queue, rng.randint(1, 9)))
    turns = [-1, *(at for at, lane in enumerate(order) if lane == "l")]
    assert max(after - before for before, after in pairwise(turns)) <= LOW_BOUND


@pytest.mark.parametrize("done", [0, 1, 20, 333])
def test_high_is_next_behind_20_000_low_ones(queue, registry, done):
    """A backlog costs an urgent job at most one place."""
    enqueue(queue, 20_000, "f", priority="low")
    claim(queue, done)
    [urgent] = enqueue(queue, 1, "f", priority="high")
    assert urgent in ids(claim(queue, 2))


def test_jobs_that_do_not_run_cost_their_lane_no_turn(queue, registry, connections):
    """Expired ones and those that are set aside take no claim away from their priority."""
    deploy(registry, "one", max_concurrency=1)
    blocked = enqueue(queue, 200, "one", priority="high")
    late = enqueue(queue, 100, "f", priority="high", expires_after_ms=60_000)
    let_expire(connections, late)
    fill(queue, "default", {"high": 16, "normal": 4, "low": 1}, 210)
    got = [c for _ in range(30) for c in claim(queue, 7)]
    assert [c.id for c in got if c.function == "one"] == blocked[:1]
    assert_shares("".join(c.priority[0] for c in got), {"high": 16, "normal": 4, "low": 1})


def test_new_weights_hold_from_the_next_claim_on(queue, registry):
    """Within one turn by the old ones."""
    for priority in PRIORITIES:
        enqueue(queue, 700, "f", priority=priority)
    claim(queue, 100)
    registry.put_pool("default", PoolSpec(weights=Weights(high=1, normal=1, low=1)))
    order = "".join(c.priority[0] for c in claim(queue, 600))
    assert min(order.count("h"), order.count("n"), order.count("l")) >= 190


def test_each_lane_keeps_its_order_over_pools_slots_and_steps(queue, registry):
    """First in, first out among jobs of one pool and priority, however they are claimed."""
    rng = Random(11)
    pools = ("default", "gpu", "email")
    accepted: dict[tuple[str, str], list[str]] = {(pool, p): [] for pool in pools for p in PRIORITIES}
    claimed: dict[tuple[str, str], list[str]] = {lane: [] for lane in accepted}
    for _ in range(300):
        news = [NewJob("f", b"1", pool=rng.choice(pools), priority=rng.choice(PRIORITIES)) for _ in range(5)]
        queue.enqueue_many(news)
        for job in news:
            accepted[job.pool, job.priority].append(job.id)
        free = [(pool, rng.randint(0, 3)) for pool in rng.sample(pools, 2)]
        for c in queue.step("runner", LEASE_MS, [], free).claims:
            claimed[c.pool, c.priority].append(c.id)
    assert sum(map(len, claimed.values())) > 500
    for lane, order in claimed.items():
        assert order == accepted[lane][: len(order)]


def test_a_backlog_makes_no_claim_dearer(connections):
    """The cost of one claim does not grow with the queue: `python -m tests.bench claim-cost` has the large sizes."""
    ratios: list[float] = []
    while len(ratios) < 5:  # a claim that grows with the queue is never that cheap, other work on the machine passes
        connections.commands.flushdb()
        _, full = claims.measure(connections, [0, 20_000], 400)
        ratios.append(full["ratio_p50"])
        if ratios[-1] < 2:
            break
    assert ratios[-1] < 2, ratios


def test_a_runner_of_other_pools_takes_nothing(queue, registry, connections):
    """A job waits for a runner that serves its pool, and stays where it is."""
    [job] = enqueue(queue, 1, "f", pool="gpu")
    assert queue.step("runner", LEASE_MS, [], [("default", 9), ("email", 9)]).claims == []
    assert connections.commands.lrange(keys.lane("gpu", "normal"), 0, -1) == [job.encode()]
    assert ids(claim(queue, 1, "gpu")) == [job]
