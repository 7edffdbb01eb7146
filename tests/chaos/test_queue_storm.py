"""Storms over the queue: whatever is killed, stopped or cut off, each acknowledged job ends once and as planned.

Each test ends with the table of ``tests.chaos.verdict``. Sizes, seed and mix: docs/chaos.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos import disruptors, journal, plan, verdict
from tests.chaos.storm import LEASE_S, REAP_S, SLOTS, Storm
from tests.chaos.verdict import Verdict

pytestmark = [pytest.mark.redis, pytest.mark.timeout(1500)]

#: lease + reaper + 1 s.
RECOVERY_S = LEASE_S + REAP_S + 1.0
#: After the last job was sent and the last disruption is over.
QUIET_S = 60.0

Disruptor = Callable[[Storm, threading.Event], object]


@pytest.fixture
def storm() -> Iterator[Storm]:
    with Storm(plan.seed()) as storm:
        yield storm


def weather(storm: Storm, share: float, *disruptors: Disruptor) -> list[object]:
    """Send a share of the jobs while the disruptors run; returns what these returned, when all is quiet again."""
    jobs = plan.jobs(storm.rng, round(plan.number("JOBS") * share))
    stop = threading.Event()
    with ThreadPoolExecutor(len(disruptors) + 1) as threads:
        running = [threads.submit(disruptor, storm, stop) for disruptor in disruptors]
        try:
            storm.send(jobs, plan.number("SPREAD_S") * share)
        finally:
            stop.set()
        answers = [future.result(timeout=120) for future in running]
    storm.settle_down(QUIET_S)
    return answers


def judge(title: str, storm: Storm) -> Verdict:
    executions = journal.read(storm.journal)
    judge = verdict.Judge(title, storm.queue, storm.sent, storm.disruptions, RECOVERY_S)
    found = judge.judge(executions)
    narrow = {sent.job.id for sent in storm.sent if sent.plan.function == "narrow"}
    found.narrow_peak = verdict.narrow_peak(executions, narrow, storm.disruptions)
    found.leftovers = verdict.leftovers(storm.connections, storm.queue)
    return found


def runners() -> int:
    return round(plan.number("RUNNERS"))


def test_runners_killed_under_load_lose_nothing(storm, record_property):
    """SIGKILL again and again: every job ends as planned, once, and what ran on the dead is running again in time."""
    storm.start(runners())
    [killed] = weather(storm, 1.0, disruptors.kills)
    found = judge("SIGKILL storm", storm)
    found.check(record_property)
    assert killed


def test_zombies_change_nothing(storm, record_property):
    """Runners stopped for two leases and then let go, and reports of long lost attempts: none is taken."""
    storm.start(runners())
    zombies = [disruptors.Zombie(storm, f"zombie{i}") for i in range(1 if plan.size() == "small" else 8)]

    def haunt(storm: Storm, stop: threading.Event) -> None:
        for zombie in zombies:
            zombie.haunt(threading.Event(), SLOTS)  # its own pause, also when the last job was sent

    def stall(storm: Storm, stop: threading.Event) -> None:
        disruptors.stalls(storm, threading.Event(), 1 if plan.size() == "small" else 5)

    weather(storm, 0.7, haunt, stall)
    found = judge("SIGSTOP for two leases, zombies", storm)
    found.zombie = (sum(zombie.sent for zombie in zombies), sum(zombie.accepted for zombie in zombies))
    found.check(record_property)
    assert found.zombie[0]


def test_redis_killed_under_load_loses_nothing(storm, record_property):
    """kill -9 of a Redis with AOF: what was acknowledged a second before ends as planned, nobody needs a restart."""
    storm.start(runners())
    every_s, count = plan.number("REDIS_KILL_EVERY_S"), round(plan.number("REDIS_KILLS"))
    before = list(storm.runners)
    share = max(0.7, every_s * (count + 0.5) / plan.number("SPREAD_S"))
    [killed] = weather(storm, share, lambda storm, stop: disruptors.redis_kills(storm, stop, every_s, count))
    found = judge("Redis kill -9, AOF everysec", storm)
    found.check(record_property)
    assert killed
    assert [process.popen.poll() for process in before] == [None] * len(before)


def test_killed_connections_and_forgotten_scripts_are_harmless(storm, record_property):
    """CLIENT KILL and SCRIPT FLUSH all the time: every job ends as planned."""
    storm.start(runners())
    [killed] = weather(storm, 0.5, disruptors.connection_storm)
    found = judge("CLIENT KILL and SCRIPT FLUSH", storm)
    found.check(record_property)
    assert killed


def test_runners_behind_a_partition_let_go_and_come_back(storm, record_property):
    """A third of the runners cut off: others get their jobs in time, and what arrives late from behind is refused."""
    storm.start(runners(), behind_proxy=max(1, runners() // 3))
    before = list(storm.runners)
    seconds = plan.number("PARTITION_S")
    share = max(0.7, (seconds + 1) / plan.number("SPREAD_S"))

    def cut_off(storm: Storm, stop: threading.Event) -> None:
        stop.wait(1)
        disruptors.partition(storm, threading.Event(), seconds)

    weather(storm, share, cut_off)
    found = judge(f"Partition of {seconds:g} s", storm)
    found.check(record_property)
    assert [process.popen.poll() for process in before] == [None] * len(before)


def test_rolling_restarts_burn_no_attempt(storm, record_property):
    """SIGTERM of every runner in turn: what does not fit into the grace is handed back, and nothing counts as lost."""
    storm.start(runners())
    restarts = round(plan.number("RESTARTS"))
    weather(storm, 0.8, lambda storm, stop: disruptors.rolling_restarts(storm, restarts))
    found = judge(f"{restarts} rolling restarts", storm)
    found.check(record_property)
    assert found.losses == 0
