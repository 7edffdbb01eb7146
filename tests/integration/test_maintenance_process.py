"""``bananas runner --only maintenance``: what keeps the queue going while there is no runner and no engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bananas import keys
from bananas.job import JobState, NewJob
from bananas.schedules import Schedules
from bananas.spec import ScheduleSpec
from tests.integration.gateway_player import Player
from tests.platform import ROOT, Platform, until

SOON_S = 30.0


@pytest.fixture
def quiet(platform: Platform, outside: Player):
    """The platform's Redis with a function, and nobody but the one process to look after it."""
    process = platform.maintenance(DOCKER_HOST="tcp://127.0.0.1:1", BANANAS_LEASE_S="2")
    yield process
    process.stop()


def test_delays_leases_and_schedules_end_without_a_runner(platform: Platform, outside: Player, quiet) -> None:
    """It takes none of the jobs, is no runner in any list, and leaves when it is told to."""
    queue = outside.queue
    lost = queue.enqueue(NewJob("hello", b"1"))
    [claim] = queue.step("a runner that died", 500, [], [("default", 1)]).claims
    assert claim.id == lost.id
    late = queue.enqueue(NewJob("hello", b"2", delay_ms=300))
    outside.deploy("often", schedule=ScheduleSpec(cron="* * * * *", catchup="all"))
    an_hour_ago = platform.registry.now_ms() - 3_600_000
    platform.connections.commands.hset(keys.cron("often"), "last", an_hour_ago // 60_000 * 60_000)
    until(lambda: queue.show(late.id).state is JobState.PENDING, SOON_S, "the delayed job to fall due")
    until(lambda: queue.show(lost.id).state is JobState.PENDING, SOON_S, "the lost job to come back")
    until(lambda: [s.fired for s in Schedules(platform.connections).list()] > [0], SOON_S, "the schedule to fire")
    assert platform.client.runners() == []
    assert quiet.stop() == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["runner", "--only", "maintainance"], "images, call, doctor and --only maintenance"),
        (["bananas", "runner", "--only", "maintenance", "--pools", "gpu"], "leave --pools out"),
    ],
)
def test_other_words_are_refused(args: list[str], says: str) -> None:
    """A misspelt role is no runner, and it has no pools."""
    command = [sys.executable, "-m", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    assert says in done.stderr
