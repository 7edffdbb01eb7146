"""The command line against a real gateway: dead letters, batches and waiting jobs, as an operator meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bananas.job import NewJob, Outcome
from tests.integration.conftest import Cli
from tests.integration.gateway_player import Player

pytestmark = pytest.mark.redis


@pytest.fixture
def player(outside: Player) -> Player:
    return outside


def die(player: Player, n: int) -> None:
    for _ in range(n):
        player.queue.enqueue(NewJob("hello", b'{"n":  1}', max_retries=0))
        error = {"type": "ValueError", "message": "boom", "traceback": "Traceback …\nValueError: boom"}
        player.settle(player.claim(), Outcome.ERROR, error=error)


def test_a_failed_job_is_found_mended_and_replayed(player: Player, bananas: Cli, tmp_path: Path) -> None:
    """The way from a list to another payload and a result."""
    die(player, 1)
    code, out, _ = bananas("dead", "ls", "--function", "hello", "-o", "json")
    [letter] = json.loads(out)
    assert (code, letter["reason"]) == (0, "retries_exhausted")
    shown = bananas("dead", "show", letter["id"])[1]
    assert "ValueError: boom" in shown
    assert shown.endswith('payload   {"n":  1}\n')
    (tmp_path / "event.json").write_text('{"n": 2}')
    assert bananas("dead", "replay", letter["id"], "--payload", f"@{tmp_path}/event.json")[0] == 0
    claim = player.claim()
    assert claim.payload == b'{"n": 2}'
    player.settle(claim, result=b'"mended"')
    assert 'result    "mended"' in bananas("jobs", "show", letter["id"])[1]
    code, _, err = bananas("dead", "replay", letter["id"])
    assert (code, "is completed; only failed jobs can be replayed" in err) == (1, True)


def test_more_than_a_page_is_replayed_and_purged(player: Player, bananas: Cli) -> None:
    """The command follows the cursor to the end; what is wrong in a filter is told."""
    die(player, 150)
    code, out, err = bananas("dead", "replay", "--function", "hello", "--rate", "1000/s")
    assert (code, len(set(out.split())), err) == (0, 150, "150 replayed\n")
    assert bananas("dead", "ls")[1].count("\n") == 1
    assert player.queue.counts().dead == 0
    for job in out.split():
        player.queue.cancel(job)
    die(player, 120)
    assert bananas("dead", "purge", "--reason", "permanent", "--yes")[1] == "0 purged\n"
    code, _, err = bananas("dead", "purge", "--before", "yesterday", "--yes")
    assert (code, "before must be an RFC 3339 time with a zone" in err) == (1, True)
    assert bananas("dead", "purge", "--all", "--yes")[1] == "120 purged\n"


def test_a_file_of_jobs_is_queued_and_waits_for_a_runner(player: Player, bananas: Cli, tmp_path: Path) -> None:
    """Ids on stdout, what is wrong on stderr; and the pool says that nobody serves it."""
    lines = ['{"name": "hello", "payload": {"n": 1}}', '{"name": "hello", "priority": "urgent"}', '{"name": "helo"}']
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    code, out, err = bananas("jobs", "batch", f"{tmp_path}/jobs.jsonl")
    assert code == 1
    assert 'line 2: priority must be high, normal or low, not "urgent"\n' in err
    assert "line 3: no function 'helo' is deployed; did you mean 'hello'?\n" in err
    assert err.endswith("1 queued, 2 refused\n")
    assert "waiting   no live runner serves pool 'default'; start one with" in bananas("jobs", "show", out.strip())[1]
    assert bananas("pools")[2].startswith("1 job waits in pool default for a runner; start one with `bananas runner")
    code, _, err = bananas("invoke", "hello")
    assert (code, "no live runner serves pool 'default'" in err) == (1, True)
    first = bananas("jobs", "submit", "hello", "--unique-key", "k")[1]
    assert bananas("jobs", "submit", "hello", "--unique-key", "k")[1] == first
