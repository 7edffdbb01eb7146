"""``bananas explain``: the words for every state and outcome, made from records as the gateway gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bananas.cli import explain
from bananas.job import DeadReason, Outcome
from runner.reasons import Start, StartReason
from tests.tools.stub_gateway import StubGateway, problem

Cli = Callable[..., SimpleNamespace]
TIMES = {"queued_ms": 0.4, "wait_sandbox_ms": 280.0, "init_ms": 30.0, "run_ms": 1.25, "total_ms": 312.0}


def attempt(number: int = 1, outcome: str = "ok", **more: Any) -> dict[str, Any]:
    base = {"attempt": number, "outcome": outcome, "start": "cold", "start_reason": "no_stem", "runner": "r1"}
    return base | {"nth_use": 1, "timings": TIMES, "error": None} | more


def test_where_the_time_of_an_attempt_went(gateway: StubGateway, bananas: Cli) -> None:
    """Every part, why it was cold, and the rest that no part names."""
    gateway.record("j1", history=[attempt()], finished_at="2026-11-24T06:00:02.312Z")
    done = bananas("explain", "j1")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "hello @ 103c89f0cdda: completed in 2312.0 ms, 1 attempt\n"
        "\n"
        "attempt 1: ok, the handler returned\n"
        "  queued        0.4 ms\n"
        "  sandbox     280.0 ms  cold: it waited for a container; the spare ones were\n"
        "                        used up; min_warm keeps some ready (its use number 1)\n"
        "  loading      30.0 ms\n"
        "  running       1.2 ms\n"
        "  other         0.3 ms\n"
        "  together    312.0 ms\n"
        "\n"
        "outside of attempts    2000.0 ms  until it was due, and between tries\n"
    )
    told = json.loads(bananas("explain", "j1", "-o", "json").out)
    assert (told["elapsed_ms"], told["between_ms"], told["attempts"][0]["other_ms"]) == (2312, 2000, 0.35)


@pytest.mark.parametrize(
    ("reason", "outcome", "says"),
    [
        ("retries_exhausted", "error", "next: mend the cause, then `bananas replay j1`"),
        ("retries_exhausted", "timeout", "raise the function's timeout"),
        ("retries_exhausted", "oom", "raise the memory of its pool"),
        ("start_failed", "start", "run `bananas doctor` on a runner's host"),
        ("poisoned", "lost", "look into the runners' logs"),
    ],
)
def test_why_a_job_failed_and_what_to_do(
    gateway: StubGateway, bananas: Cli, reason: str, outcome: str, says: str
) -> None:
    """The next step depends on how the last try ended; an attempt without times says so; nothing steers a terminal."""
    error = {"type": "ValueError", "message": "boom\x1b[2J " + "long " * 40}
    gateway.record("j1", status="failed", reason=reason, error=error, history=[attempt(1, outcome, error=error)])
    out = bananas("explain", "j1").out
    assert f"failed ({reason}): " in out
    assert says in out
    assert "  ValueError: boom?[2J long" in out
    assert max(map(len, out.splitlines())) <= 80
    gateway.record("j1", status="failed", reason=reason, history=[attempt(1, "lost", timings={}, start=None)])
    assert "no times: nobody was there to tell them" in bananas("explain", "j1").out


def test_what_a_waiting_job_waits_for(gateway: StubGateway, bananas: Cli) -> None:
    """A runner, its turn, its time or its next try; a token that may not look at pools still gets an answer."""
    waiting = {"status": "pending", "attempts": 0, "finished_at": None}
    gateway.record("j1", **waiting, waiting_for="runner", waiting_detail="no live runner serves pool 'default'")
    assert "waits (runner): no live runner serves pool 'default'" in bananas("explain", "j1").out
    gateway.pools["default"] = {"concurrency": 8}
    gateway.record("j1", **waiting)
    assert "waits (turn): its turn; 321 queued in pool default, 2 running, on 1 runner" in (
        bananas("explain", "j1").out
    )
    gateway.override["GET /pools"] = problem(403, "forbidden", "not for this token")
    assert json.loads(bananas("explain", "j1", "-o", "json").out)["waits_for"] == {
        "what": "turn",
        "detail": "its turn in pool default",
    }
    due = {"status": "scheduled", "scheduled_for": "2026-11-24T07:00:00.000Z", "finished_at": None}
    gateway.record("j1", **due, attempts=0)
    assert "waits (time): it is to run at 2026-11-24T07:00:00.000Z or later" in bananas("explain", "j1").out
    gateway.record("j1", **due, attempts=2, history=[attempt(1, "error"), attempt(2, "error")])
    assert "waits (retry): try 3 begins at 2026-11-24T07:00" in bananas("explain", "j1").out


def test_a_running_job_says_since_when(gateway: StubGateway, bananas: Cli) -> None:
    """And what was before: how long its job had been there, and the attempts that are over."""
    times = {"created_at": "2026-11-24T06:00:00.000Z", "started_at": "2026-11-24T06:00:02.500Z", "finished_at": None}
    gateway.record("j1", status="processing", attempts=2, history=[attempt(1, "error")], **times)
    out = bananas("explain", "j1").out
    assert "attempt 2 runs since 2026-11-24T06:00:02.500Z, 2500.0 ms after the job was made" in out
    assert "attempt 1: error" in out
    told = json.loads(bananas("explain", "j1", "-o", "json").out)
    assert told["runs"] == {"attempt": 2, "since": "2026-11-24T06:00:02.500Z", "after_ms": 2500.0}
    gateway.record("j1")
    assert json.loads(bananas("explain", "j1", "-o", "json").out)["runs"] is None


def test_every_word_of_the_vocabulary_has_an_explanation() -> None:
    """Outcomes, reasons of dead letters, starts and their reasons: a new one must be given words here."""
    assert explain._OUTCOMES.keys() == {outcome.value for outcome in Outcome}
    assert explain._REASONS.keys() == {reason.value for reason in DeadReason}
    assert explain._STARTS.keys() == {start.value for start in Start} - {"spare", "min_warm"}
    assert explain._START_REASONS.keys() == {reason.value for reason in StartReason} - {""}


def test_replay_puts_a_failed_job_back(gateway: StubGateway, bananas: Cli) -> None:
    """The same id, the version that failed; with --current the one of today."""
    gateway.record("j1", status="failed", reason="permanent")
    done = bananas("replay", "j1")
    assert (done.code, done.out, done.err) == (0, "j1\n", "the same job, back in the queue\n")
    assert json.loads(gateway.bodies[-1]) == {"version": "same"}
    bananas("replay", "j1", "--current")
    assert json.loads(gateway.bodies[-1]) == {"version": "current"}
    gateway.override["POST /jobs/j1/replay"] = problem(409, "version-gone", "replay with the current one")
    assert bananas("replay", "j1").err == "error: replay with the current one: `bananas replay j1 --current`\n"


def test_replay_makes_a_new_job_of_one_that_completed(gateway: StubGateway, bananas: Cli) -> None:
    """With its input, pool and priority; the gateway gives it that one's version and limits, unless told otherwise."""
    gateway.deploy("hello")
    gateway.record("j0", priority="low", pool="gpu")
    done = bananas("replay", "j0")
    assert (done.code, done.out, done.err) == (0, "job-1\n", "a new job with the same input; j0 stays completed\n")
    assert json.loads(gateway.bodies[-1]) == {
        "name": "hello",
        "payload": {"n": 1},
        "priority": "low",
        "pool": "gpu",
        "like": "j0",
    }
    assert json.loads(bananas("replay", "j0", "--current", "-o", "json").out)["is_new"] is True
    assert "like" not in json.loads(gateway.bodies[-1])
    gateway.override["POST /jobs"] = problem(409, "version-gone", "it is gone")
    assert bananas("replay", "j0").err == "error: it is gone: `bananas replay j0 --current`\n"
    gateway.record("j0", status="processing")
    assert "job j0 is processing, and only one that is over can run again" in bananas("replay", "j0").err
