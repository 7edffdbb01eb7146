"""Several calls in one sandbox (``calls_per_sandbox``): who gets a seat, and what one call's end is to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import gevent
import msgspec
import pytest
from gevent.event import Event

from bananas.job import Claim, Outcome, Settlement
from bananas.protocols import Binding, HandlerLoadError, SandboxProfile
from bananas.settings import LIMITS
from bananas.spec import Bundles, FunctionSpec, PoolSpec, RetrySpec, Version
from bananas.testing import Exit, FakeSandboxFactory, Hang, ManualClock
from runner.executor import Executor, Running
from runner.gate import Gate
from runner.pool import SandboxPool, profile_of
from runner.reasons import EndReason
from runner.slot import Plan, Reuse, Seat, Wish
from runner.tally import Tally

SPEC = PoolSpec(concurrency=6, idle_timeout_ms=10_000)
HELLO = Binding("hello", "v1", "h.wait", "a" * 64, None, calls=3)
THREE = Reuse(calls=3)
WAIT_S = 30.0


class Rig:
    """A pool, and an executor that runs calls in it; a call of ``h.wait`` runs until ``let`` is set."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Any, Any], Any]] = {
            "h.wait": self._wait,
            "h.hang": lambda event, context: self._end(Hang(), event),
            "h.exit": lambda event, context: self._end(Exit(3), event),
            "h.oom": lambda event, context: self._end(Exit(signal=9, oom=True), event),
        }
        self.handlers["h.mixed"] = lambda event, context: self.handlers[f"h.{event}"](event, context)
        self.factory = FakeSandboxFactory(self.handlers)
        self.clock = ManualClock()
        self.tally = Tally()
        self.pool = SandboxPool("default", SPEC, self.factory, Gate(2), self.clock, tally=self.tally, rng=Random(0))
        self.begun: list[str] = []
        self.let = Event()
        self.spec = FunctionSpec(handler="h.mixed", calls_per_sandbox=3)

    def _wait(self, event: Any, context: Any) -> str:
        self.begun.append(context.job_id)
        assert self.let.wait(timeout=WAIT_S)
        return str(context.job_id)

    def _end(self, error: BaseException, event: Any) -> None:
        until(lambda: len(self.begun) >= 2, "the others to run")
        raise error

    def seat(self, binding: Binding = HELLO, reuse: Reuse = THREE) -> Seat:
        seat = self.pool.acquire(profile(), binding, reuse)
        self.pool.bind(seat, binding, 1.0, lambda _: None)
        return seat

    def attempt(self, job: str, event: str = "wait", **changes: Any) -> tuple[Running, gevent.Greenlet[..., Any]]:
        """An attempt under way."""
        version = Version(
            function="f", version="v1", spec=self.spec, bundles=Bundles(code="a" * 64), abi="x", deployed_at_ms=0
        )
        runner = Executor(
            "r1", lambda *_: version, lambda *_: profile(), lambda _: {}, self.clock, Random(0), lambda _: None
        )
        running = Running(msgspec.structs.replace(claim(job, event), **changes), 0.0)
        self.pool.reserve()
        return running, gevent.spawn(runner.run, running, self.pool)

    def three(self, event: str, **changes: Any) -> list[Settlement | None]:
        """The ends of two calls that wait and of one, begun last, that ends as ``event`` says."""
        attempts = [self.attempt("j1"), self.attempt("j2"), self.attempt("j3", event, **changes)]
        greenlets = [greenlet for _, greenlet in attempts]
        attempts[2][1].join(timeout=WAIT_S)
        self.let.set()
        gevent.joinall(greenlets, timeout=WAIT_S, raise_error=True)
        return [greenlet.value for greenlet in greenlets]


def profile(spec: PoolSpec = SPEC) -> SandboxProfile:
    return profile_of("default", spec, "image", "sha256:1")


def claim(job: str, event: str) -> Claim:
    payload = b'"%b"' % event.encode()
    return Claim(job, 1, "f", "v1", "default", "normal", payload, 1000, RetrySpec(), 0, 0, 5, 10, 1000)


def until(condition: Callable[[], object], what: str) -> None:
    with gevent.Timeout(WAIT_S, AssertionError(what)):
        while not condition():
            gevent.sleep(0.001)


def settle() -> None:
    for _ in range(50):
        gevent.sleep(0)


def ends(tally: Tally) -> dict[str, int]:
    counts = tally.take()
    return {name.split(":")[3]: number for name, number in counts.items() if name.startswith("end:")}


@pytest.fixture
def rig() -> Rig:
    return Rig()


# -- seats ---------------------------------------------------------------------------------------------------------


def test_one_sandbox_is_filled_before_another_is_used(rig):
    """Calls of one version share; each takes a place of the pool."""
    seats = [rig.seat() for _ in range(4)]
    assert [seat.sandbox.id for seat in seats] == ["fake1"] * 3 + ["fake2"]
    assert [(seat.start, seat.reason) for seat in seats[1:3]] == [("warm", "shared")] * 2
    assert [seat.nth_use for seat in seats] == [1, 2, 3, 1]
    assert seats[3].reason == "no_stem"
    assert rig.pool.free == 2
    assert rig.pool.states()["busy"] == 2
    rig.pool.release(seats[1], reusable=True)
    assert rig.pool.free == 3
    again = rig.seat()
    assert (again.slot, again.nth_use) == (seats[0].slot, 4)


def test_only_calls_of_the_same_version_share(rig):
    """Also when there is room."""
    seats = [rig.seat(), rig.seat(replace(HELLO, version="v2")), rig.seat(replace(HELLO, function="other"))]
    assert len({seat.sandbox.id for seat in seats}) == 3


def test_a_sandbox_is_idle_when_its_last_call_has_left(rig):
    """Not before; then it serves again, and its place can be had by others."""
    seats = [rig.seat() for _ in range(3)]
    for seat, idle in zip(seats, (0, 0, 1), strict=True):
        rig.pool.release(seat, reusable=True)
        assert rig.pool.states()["idle"] == idle
    assert rig.pool.free == 6
    assert (rig.seat().start, len(rig.factory.created)) == ("warm", 1)


def test_who_comes_while_the_code_is_loaded_waits_for_that(rig):
    """A burst of first calls makes one sandbox, not one for each."""
    first = rig.pool.acquire(profile(), HELLO, THREE)
    others = [gevent.spawn(rig.pool.acquire, profile(), HELLO, THREE) for _ in range(2)]
    settle()
    assert not any(other.ready() for other in others)
    assert rig.pool.free == 3
    rig.pool.bind(first, HELLO, 1.0, lambda _: None)
    gevent.joinall(others, timeout=WAIT_S, raise_error=True)
    assert {other.value.slot for other in others} == {first.slot}
    assert len(rig.factory.created) == 1


def test_code_that_does_not_load_fails_for_all_who_waited(rig):
    """Once for each sandbox, and nothing is left."""
    broken = replace(HELLO, handler="missing.handle")
    first = rig.pool.acquire(profile(), broken, THREE)
    other = gevent.spawn(rig.pool.acquire, profile(), broken, THREE)
    settle()
    with pytest.raises(HandlerLoadError):
        rig.pool.bind(first, broken, 1.0, lambda _: None)
    rig.pool.release(first, reusable=False, why_not=EndReason.FAILED_LOAD)
    other.join(timeout=WAIT_S)
    assert isinstance(other.exception, HandlerLoadError)
    assert (len(rig.factory.created), rig.pool.free) == (1, 6)


def test_who_waited_for_a_load_that_was_given_up_loads_itself(rig):
    """The first attempt was cancelled: that is nothing to the second."""
    first = rig.pool.acquire(profile(), HELLO, THREE)
    other = gevent.spawn(rig.pool.acquire, profile(), HELLO, THREE)
    settle()
    first.interrupt("was ended (cancelled)")
    rig.pool.destroy(first, EndReason.ABANDONED)
    seat = other.get(timeout=WAIT_S)
    assert (seat.sandbox.id, seat.slot.is_bound, seat.nth_use) == ("fake2", False, 1)


def test_a_sandbox_that_died_takes_no_more_calls(rig):
    """Its calls will hear of it; the next one has another."""
    seat = rig.seat()
    rig.factory.created[0].interrupted = True
    assert rig.seat().slot is not seat.slot


def test_what_must_not_serve_again_takes_no_more_calls_and_ends_with_the_last(rig):
    """One call says so; the others finish."""
    a, b = rig.seat(), rig.seat()
    rig.pool.release(a, reusable=False, why_not=EndReason.LEFTOVERS)
    assert rig.seat().slot is not b.slot
    assert rig.factory.created[0].is_alive
    rig.pool.release(b, reusable=True)
    settle()
    assert rig.factory.created[0].terminated
    assert ends(rig.tally) == {"leftovers": 1}


def test_max_uses_counts_calls(rig):
    """No more calls than that, however many run at once; the sandbox ends after the last."""
    reuse = replace(THREE, max_uses=2)
    seats = [rig.seat(reuse=reuse) for _ in range(3)]
    assert [seat.sandbox.id for seat in seats] == ["fake1", "fake1", "fake2"]
    for seat in seats[:2]:
        assert rig.factory.created[0].is_alive
        rig.pool.release(seat, reusable=True)
    settle()
    assert ends(rig.tally) == {"max_uses": 1}


def test_max_lifetime_ends_a_sandbox_that_is_never_idle(rig):
    """When its time is over no call begins in it any more."""
    reuse = replace(THREE, max_lifetime_s=5)
    seat = rig.seat(reuse=reuse)
    rig.clock.advance(6)
    assert rig.seat(reuse=reuse).slot is not seat.slot
    rig.pool.release(seat, reusable=True)
    settle()
    assert ends(rig.tally) == {"max_lifetime": 1}


def test_min_warm_counts_sandboxes(rig):
    """However many calls run in the one that there is, no second one is made; and it is not one for each seat."""
    wish = Wish(profile(), HELLO, THREE, 1.0, 1)
    rig.pool.prepare(Plan(wishes=(wish,), versions={"hello": "v1"}))
    rig.pool.refill()
    settle()
    seats = [rig.seat() for _ in range(2)]
    rig.pool.refill()
    settle()
    assert [seat.start for seat in seats] == ["warm", "warm"]
    assert len(rig.factory.created) == 1
    for seat in seats:
        rig.pool.release(seat, reusable=True)
    rig.clock.advance(1000)
    rig.pool.expire()
    assert rig.pool.states()["idle"] == 1


def test_an_idle_sandbox_makes_room_when_shared_calls_fill_the_pool(rig):
    """Places are counted in calls: with five of them and an idle one the pool of six is full."""
    rig.pool.release(rig.seat(replace(HELLO, function="other")), reusable=True)
    for _ in range(5):
        rig.seat()
    assert rig.pool.free == 1
    rig.seat(replace(HELLO, function="third"))
    settle()
    assert ends(rig.tally) == {"capacity": 1}
    assert rig.pool.free == 0


def test_changed_settings_reach_a_sandbox_that_is_never_idle(rig):
    """New calls have another one at once; the old one ends with its last call."""
    seat = rig.seat()
    changed = PoolSpec(concurrency=6, idle_timeout_ms=10_000, memory_mb=512)
    rig.pool.reconfigure(changed)
    other = rig.pool.acquire(profile(changed), HELLO, THREE)
    assert other.slot is not seat.slot
    rig.pool.release(seat, reusable=True)
    settle()
    assert ends(rig.tally) == {"pool_changed": 1}


# -- what the end of one call is to the others ---------------------------------------------------------------------


def test_calls_that_share_end_each_by_itself(rig):
    """The ordinary case: three calls at once in one sandbox, three results."""
    attempts = [rig.attempt(f"j{n}") for n in range(3)]
    until(lambda: len(rig.begun) == 3, "all to run at once")
    rig.let.set()
    settlements = [greenlet.get(timeout=WAIT_S) for _, greenlet in attempts]
    assert [s.result for s in settlements] == [b'"j0"', b'"j1"', b'"j2"']
    assert {s.attempt.sandbox for s in settlements} == {"fake1"}
    assert sorted(s.attempt.nth_use for s in settlements) == [1, 2, 3]
    assert rig.pool.states()["idle"] == 1


def test_a_timeout_sends_the_others_back_and_costs_them_nothing(rig):
    """Its own job is timed out; theirs go to the head of their lanes, and the record says why."""
    first, second, third = rig.three("hang")
    assert (third.attempt.outcome, third.decision.action) == (Outcome.TIMEOUT, "retry")
    for settlement in (first, second):
        assert (settlement.attempt.outcome, settlement.decision.action) == (Outcome.DISPLACED, "back")
        words = "another call in the same sandbox ran into its timeout, which ended every call in it"
        assert settlement.attempt.error == {"type": "Displaced", "message": words}
    assert rig.factory.created[0].terminated
    assert ends(rig.tally) == {"failed_timeout": 1}
    assert rig.pool.free == 6


@pytest.mark.parametrize(
    ("event", "outcome", "end"),
    [("exit", Outcome.CRASHED, "failed_crash"), ("oom", Outcome.OOM, "failed_oom")],
)
def test_a_crash_is_everyones(rig, event, outcome, end):
    """Nobody knows whose it was, and each record says how many it may have been."""
    settlements = rig.three(event)
    assert [s.attempt.outcome for s in settlements] == [outcome] * 3
    for settlement in settlements:
        assert settlement.attempt.error["message"].endswith(
            "; 3 calls ran in the sandbox, and any of them may be the cause"
        )
    assert ends(rig.tally) == {end: 1}


def test_a_cancelled_call_sends_the_others_back(rig):
    """It is not reported itself."""
    (cancelled, first), (_, second) = rig.attempt("j1"), rig.attempt("j2")
    until(lambda: len(rig.begun) == 2, "both to run")
    cancelled.abandon("cancelled")
    rig.let.set()
    assert first.get(timeout=WAIT_S) is None
    settlement = second.get(timeout=WAIT_S)
    assert settlement.attempt.outcome is Outcome.DISPLACED
    assert "another call in the same sandbox was ended (cancelled)" in settlement.attempt.error["message"]
    assert ends(rig.tally) == {"abandoned": 1}


def test_a_call_that_never_began_ends_nothing(rig):
    """Cancelled while it waited for its seat, which is given back unused."""
    _, first = rig.attempt("j1")
    until(lambda: len(rig.begun) == 1, "the first one to run")
    late, second = rig.attempt("j2")
    late.abandon("cancelled")
    assert second.get(timeout=WAIT_S) is None
    rig.let.set()
    assert first.get(timeout=WAIT_S).attempt.outcome is Outcome.OK
    assert (ends(rig.tally), rig.pool.free) == ({}, 6)


def test_who_is_displaced_again_and_again_pays_for_it_at_last(rig):
    """What is free of charge is bounded: then it counts as a crash."""
    rig.attempt("j1")
    _, second = rig.attempt("j2", starts=LIMITS.max_starts)
    _, third = rig.attempt("j3", "hang")
    third.join(timeout=WAIT_S)
    rig.let.set()
    settlement = second.get(timeout=WAIT_S)
    assert (settlement.attempt.outcome, settlement.decision.action) == (Outcome.CRASHED, "retry")
    assert "too often (6 times)" in settlement.attempt.error["message"]


def test_a_shutdown_hands_all_of_them_back(rig):
    """Each by itself; none is displaced by another one."""
    attempts = [rig.attempt("j1"), rig.attempt("j2")]
    until(lambda: len(rig.begun) == 2, "both to run")
    for running, _ in attempts:
        running.hand_back()
    rig.let.set()
    assert [greenlet.get(timeout=WAIT_S).attempt.outcome for _, greenlet in attempts] == [Outcome.HANDED_BACK] * 2
