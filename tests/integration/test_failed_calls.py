"""Synchronous calls that fail: the caller has the error, so they are no dead letters; their records stay for a day."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bananas import keys
from bananas.dead_letters import DeadFilter, DeadLetters
from bananas.errors import JobExpired
from bananas.job import JobState, NewJob, Outcome
from bananas.settings import LIMITS
from bananas.spec import RetrySpec
from tests.integration.gateway_player import Player, call, send
from tests.integration.jobs import make_past, repairs

pytestmark = pytest.mark.redis

ERROR = {"type": "ValueError", "message": "no"}


@pytest.fixture
def calm(player: Player) -> Player:
    player.deploy("hello", retries=RetrySpec(max=0))
    player.announce()
    return player


def fail(player: Player, **job: Any) -> str:
    """A job that fails, and its id."""
    made = player.queue.enqueue(NewJob("hello", b"1", **job))
    player.settle(player.claim(), Outcome.ERROR, error=ERROR)
    return made.id


def letters(connections) -> list[str]:
    return [letter.id for letter in DeadLetters(connections).page(DeadFilter()).letters]


def test_a_call_that_failed_is_no_dead_letter(platform, outside, connections):
    """The caller has the error. The record stays, also in the lists; a job that failed is a letter as ever."""
    outside.deploy("hello", retries=RetrySpec(max=0))
    outside.announce()
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(call, platform.port, "POST", "/functions/hello/invoke", b"{}")
        outside.settle(outside.claim(), Outcome.ERROR, error=ERROR)
        answer = calling.result(30)
    assert (answer.status, answer.json["code"]) == (500, "handler-error")
    made, job = answer.json["job"], fail(outside)
    assert letters(connections) == [job]
    assert platform.client.job(made)["reason"] == "retries_exhausted"
    for query in ({"status": "failed"}, {"status": "failed", "function": "hello"}, {"function": "hello"}):
        listed = platform.client.jobs(**query)["jobs"]
        assert {(one["id"], one["status"]) for one in listed} == {(job, "failed"), (made, "failed")}
    assert outside.queue.counts().counters["dead:retries_exhausted"] == 1
    assert repairs(outside.queue) == {}


def test_failed_jobs_and_calls_are_paged_as_one_list(client, calm):
    """Latest first, whichever they are; no cursor loses any."""
    every = [fail(calm, is_sync=bool(number % 3)) for number in range(8)]
    found, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/jobs?status=failed&limit=3&cursor={cursor}").get_json()
        found += [one["id"] for one in page["jobs"]]
        cursor = page["cursor"]
    assert sorted(found) == sorted(every)


def test_a_call_that_is_run_again_is_a_job_like_any_other(client, calm, connections):
    """Nobody waits for it now, so when it fails once more it is a dead letter."""
    made = fail(calm, is_sync=True)
    assert send(client, "POST", f"/jobs/{made}/replay", {}).status_code == 202
    calm.settle(calm.claim(), Outcome.ERROR, error=ERROR)
    assert letters(connections) == [made]
    assert connections.commands.zcard(keys.CALLS) == 0


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.OK])
def test_a_record_of_a_call_goes_in_its_time(calm, connections, outcome):
    """After a day when it failed; then its id answers that it was there."""
    if outcome is Outcome.ERROR:
        made = fail(calm, is_sync=True)
        assert 0 < connections.commands.pttl(keys.job(made)) <= 86_460_000
        make_past(connections, keys.CALLS, [made])
    else:
        made = calm.queue.enqueue(NewJob("hello", b"1", is_sync=True)).id
        calm.settle(calm.claim())
        assert connections.commands.zcard(keys.CALLS) == 0
        make_past(connections, keys.DONE, [made])
    assert calm.queue.sweep() == 1
    with pytest.raises(JobExpired):
        calm.queue.show(made)


def test_failing_calls_drive_no_letter_out(calm, connections, queue):
    """However many fail: beyond their own bound the oldest of them go, and no dead letter."""
    job, made = fail(calm), fail(calm, is_sync=True)
    connections.commands.zadd(keys.CALLS, {f"j{n}": 9e12 for n in range(LIMITS.failed_calls)})
    assert queue.sweep() == 1
    with pytest.raises(JobExpired):
        queue.show(made)
    assert letters(connections) == [job]


def test_a_lost_place_of_a_call_is_found_again(calm, connections, queue):
    """Where it belongs."""
    made = fail(calm, is_sync=True)
    connections.commands.zrem(keys.CALLS, made)
    assert repairs(queue) == {"dead": 1}
    assert connections.commands.zscore(keys.CALLS, made) is not None
    assert queue.show(made).state is JobState.FAILED
