"""``bananas explain`` and ``replay`` against a real gateway, for jobs that a played runner settles."""

from __future__ import annotations

import json

import pytest

from bananas.job import NewJob, Outcome
from tests.integration.conftest import Cli
from tests.integration.gateway_player import Player
from tests.platform import until

pytestmark = pytest.mark.redis


@pytest.fixture
def player(outside: Player) -> Player:
    return outside


def test_a_job_is_explained_from_waiting_to_failed_and_runs_again(player: Player, bananas: Cli) -> None:
    """Waits for a runner, then for its turn, fails, and is put back as the same job."""
    job = player.queue.enqueue(NewJob("hello", b'{"n":  1}', max_retries=0)).id
    assert "waits (runner): no live runner serves pool 'default'; start one with" in bananas("explain", job)[1]
    player.announce()

    def turn() -> bool:
        waits = json.loads(bananas("explain", job, "-o", "json")[1])["waits_for"]
        return waits["detail"].startswith("its turn; 1 queued in pool default, 0 running, on 1 runner ")

    until(turn, 5, "the gateway to see the runner")
    claim = player.claim()
    error = {"type": "ValueError", "message": "boom", "traceback": "Traceback …\nValueError: boom"}
    player.settle(claim, Outcome.ERROR, error=error)
    told = json.loads(bananas("explain", job, "-o", "json")[1])
    assert (told["status"], told["failure"]["reason"]) == ("failed", "retries_exhausted")
    assert (told["failure"]["error"]["message"], len(told["attempts"])) == ("boom", 1)
    assert told["elapsed_ms"] >= 0
    assert bananas("replay", job)[:2] == (0, f"{job}\n")
    assert player.claim().payload == b'{"n":  1}'


def test_a_completed_job_runs_again_as_a_new_one(player: Player, bananas: Cli) -> None:
    """With the same payload to the byte, priority and limits; the first stays what it is."""
    job = player.queue.enqueue(NewJob("hello", b'{"n":  1}', max_retries=1, timeout_ms=5000, priority="low")).id
    first = player.claim()
    player.settle(first, result=b"1")
    code, out, _ = bananas("replay", job)
    assert (code, out != f"{job}\n") == (0, True)
    again = player.claim()
    assert (again.id, again.payload, again.priority) == (out.strip(), b'{"n":  1}', "low")
    assert (again.version, again.timeout_ms, again.retries.max) == (first.version, 5000, 1)
    assert "is processing, and only one that is over can run again" in bananas("replay", again.id)[2]
    player.settle(again)
    player.deploy("hello", timeout_ms=7000)
    assert bananas("replay", job)[0] == 0
    old = player.claim()
    assert (old.version, old.timeout_ms, old.retries.max) == (first.version, 5000, 1)
    assert bananas("replay", job, "--current")[0] == 0
    new = player.claim()
    assert (new.version != first.version, new.timeout_ms) == (True, 7000)
