"""How an attempt's end is classified, with public fakes: every row that a runner decides."""

from __future__ import annotations

from random import Random
from typing import Any

import gevent
import pytest
from gevent.event import Event

from bananas.errors import GpusTaken, UnknownBundle
from bananas.job import Claim, Outcome, Settlement
from bananas.protocols import Secret
from bananas.spec import Bundles, FunctionSpec, PoolSpec, RetrySpec, Version
from bananas.testing import Exit, FakeSandboxFactory, Hang, ManualClock
from bananas_sdk import Retry
from runner.executor import Executor, LogBuffer, Running
from runner.gate import Gate
from runner.pool import SandboxPool, profile_of

SPEC = PoolSpec(concurrency=2)


class Permanent(Exception):
    permanent = True


def _raise(error: BaseException):
    def handler(event, context):
        context.print("before")
        raise error

    return handler


HANDLERS = {
    "h.ok": lambda event, context: {"got": event},
    "h.error": _raise(ValueError("no")),
    "h.later": _raise(Retry(after_s=5)),
    "h.permanent": _raise(Permanent("never")),
    "h.exit": _raise(Exit(3)),
    "h.oom": _raise(Exit(signal=9, oom=True)),
    "h.hang": _raise(Hang()),
}


@pytest.fixture
def factory() -> FakeSandboxFactory:
    return FakeSandboxFactory(HANDLERS)


@pytest.fixture
def pool(factory: FakeSandboxFactory) -> SandboxPool:
    return SandboxPool("default", SPEC, factory, Gate(2), ManualClock())


def claim(**changes: object) -> Claim:
    fields: dict[str, object] = {
        "id": "j1",
        "token": 1,
        "function": "f",
        "version": "v1",
        "pool": "default",
        "priority": "normal",
        "payload": b'{"a":1}',
        "timeout_ms": 1000,
        "retries": RetrySpec(),
        "failures": 0,
        "starts": 0,
        "enqueued_at_ms": 5,
        "claimed_at_ms": 10,
        "result_ttl_ms": 1000,
    }
    return Claim(**(fields | changes))


def executor(handler: str, **options: Any) -> Executor:
    version = Version(
        function="f",
        version="v1",
        spec=FunctionSpec(handler=handler),
        bundles=Bundles(code="a" * 64),
        abi="x",
        deployed_at_ms=0,
    )
    return Executor(
        "r1",
        lambda *_: version,
        lambda *_: profile_of("default", SPEC, "img", "sha"),
        lambda _: {},
        ManualClock(),
        Random(0),
        **options,
    )


def run(handler: str, pool: SandboxPool, **changes: object) -> Settlement:
    settlement = attempt(executor(handler), Running(claim(**changes), 0.0), pool)
    assert settlement is not None
    return settlement


def attempt(runner: Executor, running: Running, pool: SandboxPool) -> Settlement | None:
    pool.reserve()
    return runner.run(running, pool)


@pytest.mark.parametrize(
    ("handler", "outcome", "action", "kind", "reused"),
    [
        ("h.ok", Outcome.OK, "complete", None, True),
        ("h.error", Outcome.ERROR, "retry", "ValueError", True),
        ("h.later", Outcome.ERROR, "retry", "Retry", True),
        ("h.permanent", Outcome.PERMANENT, "dead", "Permanent", True),
        ("h.exit", Outcome.CRASHED, "retry", "Crashed", False),
        ("h.oom", Outcome.OOM, "retry", "OutOfMemory", False),
        ("h.hang", Outcome.TIMEOUT, "retry", "Timeout", False),
        ("h.missing", Outcome.ERROR, "retry", "ModuleNotFoundError", False),
    ],
)
def test_outcome_table(pool, factory, handler, outcome, action, kind, reused):
    """Each way an attempt can end has its outcome, its decision, and its sandbox kept or destroyed."""
    settlement = run(handler, pool)
    gevent.sleep(0)
    assert settlement.attempt.outcome is outcome
    assert settlement.decision.action == action
    assert (settlement.attempt.error or {}).get("type") == kind
    assert factory.created[0].terminated is not reused
    assert pool.free == 2


def test_ok_carries_result_start_and_timings(pool):
    """The report says where the time went and why the start was what it was."""
    settlement = run("h.ok", pool)
    attempt = settlement.attempt
    assert settlement.result == b'{"got": {"a": 1}}'
    assert (attempt.start, attempt.start_reason, attempt.nth_use) == ("cold", "no_stem", 1)
    assert set(attempt.timings) == {"queued_ms", "wait_sandbox_ms", "init_ms", "run_ms", "total_ms"}
    assert attempt.timings["queued_ms"] == 5
    warm = run("h.ok", pool).attempt
    assert (warm.start, warm.start_reason, warm.nth_use) == ("warm", None, 2)


def test_a_handler_chooses_its_delay_up_to_the_cap(pool):
    """retry_after_s is the delay, within the function's policy."""
    assert run("h.later", pool).decision.delay_ms == 5000
    assert run("h.later", pool, retries=RetrySpec(cap_ms=3000)).decision.delay_ms == 3000


def test_last_retry_is_a_dead_letter(pool):
    """After max retries the job is over."""
    assert run("h.error", pool, failures=2).decision.action == "retry"
    assert run("h.error", pool, failures=3).decision.action == "dead"


def test_logs_before_the_end_are_kept(pool):
    """What a handler printed before it failed is in the report."""
    settlement = run("h.exit", pool)
    assert settlement.logs == b"before\n"
    assert settlement.attempt.log_bytes == 7


def test_engine_trouble_uses_nothing_up(pool, factory):
    """A sandbox that does not start is not the function's fault."""
    factory.fail_next = 1
    settlement = run("h.ok", pool)
    assert (settlement.attempt.outcome, settlement.decision.action) == (Outcome.START, "retry")
    assert settlement.attempt.start is None


def test_a_job_waits_for_an_engine_that_is_away_and_for_gpus_that_others_have(pool, factory, monkeypatch):
    """It goes back with the reason, and nothing is counted, however often; the engine's own refusals are counted."""
    factory.fail_next = 1
    settlement = attempt(executor("h.ok", engine_answers=lambda: False), Running(claim(starts=5), 0.0), pool)
    assert (settlement.attempt.outcome, settlement.decision.action) == (Outcome.HELD_UP, "back")
    assert settlement.attempt.error == {"type": "SandboxStartError", "message": "told to fail"}

    def taken(_: object) -> None:
        raise GpusTaken("others have them")

    monkeypatch.setattr(factory, "create", taken)
    settlement = attempt(executor("h.ok"), Running(claim(starts=5), 0.0), pool)
    assert (settlement.attempt.outcome, settlement.decision.action) == (Outcome.HELD_UP, "back")
    assert pool.free == SPEC.concurrency


def test_missing_bundle_is_a_start_failure_with_its_reason(pool):
    """What is missing is named in the record."""

    def gone(*_: str) -> Version:
        raise UnknownBundle("bundle abc is not in Redis; deploy the function again")

    runner = Executor(
        "r1", gone, lambda *_: profile_of("default", SPEC, "i", "s"), lambda _: {}, ManualClock(), Random(0)
    )
    settlement = attempt(runner, Running(claim(), 0.0), pool)
    assert settlement is not None
    assert settlement.attempt.outcome is Outcome.START
    assert "deploy the function again" in settlement.attempt.error["message"]


def test_a_defect_of_the_runner_costs_one_attempt_and_not_the_runner(pool, factory, monkeypatch):
    """An exception that nobody expected is an outcome: free before user code ran, a crash after."""

    def surprise(*_: str) -> Version:
        raise ZeroDivisionError("unexpected")

    runner = Executor(
        "r1", surprise, lambda *_: profile_of("default", SPEC, "i", "s"), lambda _: {}, ManualClock(), Random(0)
    )
    before = attempt(runner, Running(claim(), 0.0), pool)
    assert before is not None
    assert (before.attempt.outcome, before.attempt.error["type"]) == (Outcome.START, "InternalError")
    monkeypatch.setattr("bananas.testing.FakeSandbox.invoke", lambda *_: 1 / 0)
    after = run("h.ok", pool)
    assert (after.attempt.outcome, after.attempt.error["type"]) == (Outcome.CRASHED, "InternalError")
    assert pool.free == 2


def test_abandoned_attempt_is_ended_and_not_reported(pool, factory):
    """After a lost lease nothing of the attempt may be reported, and its sandbox must be gone."""
    running = Running(claim(), 0.0)
    entered = Event()

    def handler(event, context):
        entered.set()
        running.abandon("lease lost")
        raise Exit(signal=9)

    factory.handlers["h.slow"] = handler
    assert attempt(executor("h.slow"), running, pool) is None
    gevent.sleep(0)
    assert entered.is_set()
    assert factory.created[0].terminated


def test_handed_back_attempt_goes_back_unless_it_had_answered(pool, factory):
    """Shutdown returns unfinished jobs; one that finished in the same moment is completed."""
    running = Running(claim(), 0.0, handed_back=True)

    def handler(event, context):
        running.abandon("shutdown")
        raise Exit(signal=9)

    factory.handlers["h.slow"] = handler
    settlement = attempt(executor("h.slow"), running, pool)
    assert settlement is not None
    assert settlement.decision.action == "back"
    done = attempt(executor("h.ok"), Running(claim(), 0.0, handed_back=True), pool)
    assert done is not None
    assert done.decision.action == "complete"


@pytest.mark.parametrize(
    ("secret", "value", "told"),
    [
        (b"planted-secret", {"at": "planted-secret!"}, b'{"at":"***!"}'),
        (b'"at":"here"', {"at": "here"}, b'"***"'),  # what is left without it is no JSON
        (b"planted-secret", {"at": 1}, b'{"at":1}'),
    ],
)
def test_progress_shows_no_secret_and_stays_json(pool, factory, secret, value, told):
    """Masked like logs; whoever hears of it finds it in the attempt."""
    factory.handlers["h.tells"] = lambda event, context: context.progress(value)
    heard: list[bytes | None] = []
    runner = executor("h.tells")
    runner._secrets = lambda _: {"S": Secret("1", secret)}
    runner._on_progress = lambda running: heard.append(running.progress)
    settlement = attempt(runner, Running(claim(), 0.0), pool)
    assert settlement is not None
    assert (heard, settlement.progress) == ([told], told)


def test_a_settlement_carries_only_progress_that_is_not_kept_yet(pool, factory):
    """What the record has already is not sent again, unless something newer was told."""
    factory.handlers["h.tells"] = lambda event, context: [context.progress(n) for n in range(event["a"])]
    runner = executor("h.tells")

    def keep(running: Running) -> None:
        if running.progress == b"1":
            running.progress_kept = running.progress

    runner._on_progress = keep
    progress = []
    for count in (b"0", b"1", b"2", b"3"):
        settlement = attempt(runner, Running(claim(payload=b'{"a":%b}' % count), 0.0), pool)
        assert settlement is not None
        progress.append(settlement.progress)
    assert progress == [b"", b"0", b"", b"2"]


def test_log_buffer_is_bounded():
    """A forged flood of log frames costs no memory."""
    logs = LogBuffer(10)
    logs(b"12345678")
    assert not logs.truncated
    logs(b"abcdef")
    assert (logs.text(), logs.truncated) == (b"12345678ab", True)
