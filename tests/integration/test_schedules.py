"""Schedules against a real server: one job per slot, what late slots and unfinished jobs mean, deploys, pauses."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bananas import cron, errors, keys, retry, schedules, scripts
from bananas.job import Attempt, Claim, JobState, NewJob, Outcome, Settlement, new_job_id
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.schedules import LATE_MS, LOOK_SLOTS, Schedule, Schedules
from bananas.settings import LIMITS
from bananas.spec import Bundles, Deployment, FunctionSpec, ScheduleSpec
from runner.maintenance.scheduler import Scheduler

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]
IS_LONG = os.environ.get("BANANAS_HYPOTHESIS") == "long"
CODE = b"code"
SHA = hashlib.sha256(CODE).hexdigest()
MINUTE_MS = 60_000
#: A schedule whose slots are proposed by hand.
NEVER = "0 0 29 2 *"


class Stage:
    """A function ``tick`` that is due every minute, whose last slot can be put into the past."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.redis = connections.commands
        self.queue = Queue(connections)
        self.registry = Registry(connections)
        self.schedules = Schedules(connections)

    def deploy(self, name: str = "tick", handler: str = "h.handle", **spec: Any) -> None:
        self.registry.put_bundle(SHA, CODE)
        schedule = ScheduleSpec(**{"cron": "* * * * *", **spec}) if spec.pop("has_schedule", True) else None
        function = FunctionSpec(schedule=schedule, handler=handler)
        self.registry.deploy(name, Deployment(spec=function, bundles=Bundles(code=SHA), abi="cp311-x86_64"))

    def now_ms(self) -> int:
        return self.registry.now_ms()

    def forget(self, minutes: int, name: str = "tick") -> int:
        """As if no runner had looked for so long; returns the slot that was the last."""
        last = self.now_ms() - minutes * MINUTE_MS
        last -= last % MINUTE_MS
        self.redis.hset(keys.cron(name), "last", last)
        return last

    def last(self, name: str = "tick") -> int:
        """Nothing up to there is due any more."""
        return int(self.redis.hget(keys.cron(name), "last"))

    def one(self, name: str = "tick") -> Schedule:
        [found] = [schedule for schedule in self.schedules.list() if schedule.function == name]
        return found

    def claim(self, count: int = 1000) -> list[Claim]:
        return self.queue.step("runner", 30_000, [], [("default", count)]).claims

    def settle(self, claim: Claim) -> None:
        attempt = Attempt(claim.token, Outcome.OK, "runner", 0, timings={"run_ms": 1.0})
        decision = retry.decide(Outcome.OK, claim.retries, 0, 0, Random(0))
        self.queue.step("runner", 30_000, [Settlement(claim, attempt, decision, b"null")], [])

    def fire(
        self, slot: int | str, rev: str | None = None, job: str | None = None, limit: int = 9, held: int = 9
    ) -> Any:
        """What the script answers to a proposal."""
        rev = rev or self.redis.hget(keys.cron("tick"), "rev").decode()
        job = new_job_id() if job is None else job
        return scripts.Caller(self.connections).run("fire", "tick", rev, slot, job, 0, limit, held)


@pytest.fixture
def stage(connections: Connections) -> Stage:
    """Never begins in the last seconds of a minute, so that no further slot becomes due in the middle of a test."""
    stage = Stage(connections)
    left_ms = MINUTE_MS - stage.now_ms() % MINUTE_MS
    if left_ms < 4000:
        time.sleep((left_ms + 10) / 1000)
    return stage


def slots_of(stage: Stage, name: str = "tick") -> list[int]:
    """The slots for which there is a job, by its unique key."""
    prefix = f"cron:{name}@"
    found = []
    for key in stage.redis.scan_iter(keys.job("*"), count=1000):
        unique = stage.redis.hget(key, "uniq")
        if unique and unique.decode().startswith(prefix):
            found.append(int(unique.decode().removeprefix(prefix)))
    return sorted(found)


def test_a_schedule_starts_at_its_deploy(stage: Stage) -> None:
    """Nothing fires for the past; the next five slots are told."""
    before = stage.now_ms()
    stage.deploy(cron="30 2 * * *", tz="Europe/Berlin")
    shown = stage.one()
    assert (shown.cron, shown.tz, shown.catchup, shown.overlap) == ("30 2 * * *", "Europe/Berlin", "none", "allow")
    assert before <= stage.last() <= stage.now_ms()
    assert shown.next_ms == cron.parse("30 2 * * *", "Europe/Berlin").upcoming(stage.last(), 5)
    assert shown.last_slot_ms is None
    assert (shown.is_paused, shown.last_job, shown.held, shown.problem) == (False, None, 0, None)
    look = stage.schedules.look()
    assert look.fired == []
    assert look.next_ms is not None
    assert abs(stage.now_ms() + look.next_ms - shown.next_ms[0]) < 1000


def test_a_due_slot_makes_one_job(stage: Stage) -> None:
    """With the payload, the settings of the function, and a key that names the slot."""
    stage.deploy(payload={"kind": "full"})
    last = stage.forget(1)
    look = stage.schedules.look()
    [claim] = stage.claim()
    assert look.fired == [claim.id]
    assert (claim.function, claim.payload, claim.priority) == ("tick", b'{"kind":"full"}', "normal")
    assert slots_of(stage) == [last + MINUTE_MS]
    shown = stage.one()
    assert (shown.last_slot_ms, shown.last_job, shown.fired) == (last + MINUTE_MS, claim.id, 1)
    assert stage.schedules.look().fired == Schedules(stage.connections).look().fired == []
    lag = stage.queue.counts().counters["cron_lag:tick"]
    assert 0 <= lag < MINUTE_MS


@pytest.mark.parametrize("catchup", ["none", "last", "all"])
def test_late_slots_follow_catchup(stage: Stage, catchup: str) -> None:
    """Nobody looked for ten slots; the last of them is in time when its minute is not over."""
    stage.deploy(cron="*/2 * * * *", catchup=catchup)
    last = stage.now_ms() - 20 * MINUTE_MS
    last -= last % (2 * MINUTE_MS)
    stage.redis.hset(keys.cron("tick"), "last", last)
    slots = cron.parse("*/2 * * * *").slots_between(last, stage.now_ms(), 99)
    late = [slot for slot in slots if slot <= stage.now_ms() - LATE_MS]
    in_time = slots[len(late) :]
    stage.schedules.look()
    if catchup == "all":
        expected = slots
    elif catchup == "last" and not in_time:
        expected = late[-1:]
    else:
        expected = in_time
    assert slots_of(stage) == expected
    shown = stage.one()
    assert shown.last_slot_ms == slots[-1]
    assert (shown.fired, shown.missed) == (len(expected), len(slots) - len(expected))


def test_a_long_absence_is_made_up_for_in_bounded_looks(stage: Stage) -> None:
    """Each look decides at most 1,000 slots and comes back at once."""
    stage.deploy(catchup="all")
    last = stage.forget(LOOK_SLOTS + 200)
    look = stage.schedules.look()
    assert len(look.fired) == LOOK_SLOTS
    assert look.next_ms == 0
    assert len(stage.schedules.look().fired) >= 200
    assert slots_of(stage) == list(range(last + MINUTE_MS, stage.last() + 1, MINUTE_MS))


@pytest.mark.parametrize("catchup", ["none", "last"])
def test_years_of_absence_cost_no_time(stage: Stage, catchup: str) -> None:
    """What is left out is not gone through; it is counted up to 1,000."""
    stage.deploy(catchup=catchup)
    stage.forget(5 * 365 * 24 * 60)
    began = time.monotonic()
    stage.schedules.look()
    assert time.monotonic() - began < 15  # going through them takes minutes
    shown = stage.one()
    assert stage.now_ms() - stage.last() < 2 * MINUTE_MS
    assert shown.missed >= LOOK_SLOTS - 1
    assert shown.fired <= 2


def test_skip_leaves_a_slot_out_while_the_job_before_lives(stage: Stage) -> None:
    """Pending or running: the slot is counted as skipped. When that job is over, the next one fires."""
    stage.deploy(overlap="skip")
    stage.forget(1)
    [first] = stage.schedules.look().fired
    stage.forget(1)
    assert stage.schedules.look().fired == []
    [claim] = stage.claim()
    stage.forget(1)
    assert stage.schedules.look().fired == []
    assert (stage.one().skipped, stage.one().fired, stage.one().last_job) == (2, 1, first)
    stage.settle(claim)
    last = stage.forget(2)
    assert stage.fire(last + MINUTE_MS)[0] == b"fired"


def test_queue_holds_slots_until_the_job_before_is_over(stage: Stage) -> None:
    """In order, one after the other, also when they are late by then."""
    stage.deploy(overlap="queue", catchup="none", cron=NEVER)
    last = stage.forget(4)
    slots = [last + n * MINUTE_MS for n in (1, 2, 3)]
    assert [stage.fire(slot)[0] for slot in slots] == [b"fired", b"held", b"held"]
    assert stage.one().held == 2
    for held in (1, 0):
        [claim] = stage.claim()
        look = stage.schedules.look()
        assert look.next_ms is not None
        assert look.next_ms <= 1000
        assert stage.one().held == held + 1
        stage.settle(claim)
        assert len(stage.schedules.look().fired) == 1
        assert stage.one().held == held
    assert slots_of(stage) == slots
    assert stage.fire("")[0] == b"none"


def test_held_slots_are_bounded(stage: Stage) -> None:
    """One more than the bound is skipped, and counted."""
    stage.deploy(overlap="queue")
    last = stage.forget(5)
    answers = [stage.fire(last + n * MINUTE_MS, held=2)[0] for n in (1, 2, 3, 4)]
    assert answers == [b"fired", b"held", b"held", b"skipped"]
    assert (stage.one().held, stage.one().skipped) == (2, 1)


def test_allow_fires_whatever_runs(stage: Stage) -> None:
    """The default."""
    stage.deploy()
    last = stage.forget(3)
    assert [stage.fire(last + n * MINUTE_MS)[0] for n in (1, 2)] == [b"fired", b"fired"]


def test_a_slot_is_decided_once_and_never_backwards(stage: Stage) -> None:
    """Proposed again, older, from the future, or for another revision: refused."""
    stage.deploy()
    last = stage.forget(3)
    assert stage.fire(last + 2 * MINUTE_MS)[0] == b"fired"
    assert stage.fire(last + 2 * MINUTE_MS) == [b"past", str(last + 2 * MINUTE_MS).encode()]
    assert stage.fire(last + MINUTE_MS)[0] == b"past"
    assert stage.fire(stage.now_ms() + 2000)[0] == b"early"
    assert stage.fire(last + 3 * MINUTE_MS, rev="other") == [b"changed"]
    assert slots_of(stage) == [last + 2 * MINUTE_MS]


def test_a_full_queue_puts_the_slot_off(stage: Stage) -> None:
    """It is not decided, so it fires when there is room."""
    stage.deploy()
    last = stage.forget(2)
    assert stage.fire(last + MINUTE_MS, limit=0) == [b"full"]
    assert stage.last() == last
    assert stage.fire(last + MINUTE_MS)[0] == b"fired"


def test_paused_schedules_do_not_fire_and_resume_from_now(stage: Stage) -> None:
    """What was due meanwhile is not made up for."""
    stage.deploy(catchup="all")
    assert stage.schedules.pause("tick")
    assert not stage.schedules.pause("tick")
    last = stage.forget(10)
    assert stage.schedules.look().fired == []
    assert stage.fire(last + MINUTE_MS) == [b"paused"]
    assert stage.one().is_paused
    before = stage.now_ms()
    assert stage.schedules.resume("tick")
    assert not stage.schedules.resume("tick")
    assert stage.last() >= before
    assert [slot for slot in slots_of(stage) if slot < before] == []


@pytest.mark.parametrize("operation", [Schedules.pause, Schedules.resume])
def test_a_function_without_a_schedule_cannot_be_paused(
    stage: Stage, operation: Callable[[Schedules, str], bool]
) -> None:
    """The error names it."""
    stage.deploy(has_schedule=False)
    with pytest.raises(errors.UnknownSchedule, match="'tick' has no schedule"):
        operation(stage.schedules, "tick")


def test_a_deploy_keeps_the_last_slot_unless_the_times_change(stage: Stage) -> None:
    """Other code, payload or overlap go on; another expression or zone starts anew. A pause survives all of them."""
    stage.deploy(catchup="all", overlap="queue")
    stage.schedules.pause("tick")
    last = stage.forget(3)
    for change in ({"handler": "h.other"}, {"payload": [1]}, {"overlap": "skip"}, {"catchup": "last"}):
        stage.deploy(**change)
        assert stage.last() == last
        assert stage.one().is_paused
    stage.redis.rpush(keys.held("tick"), last)
    before = stage.now_ms()
    stage.deploy(cron="*/2 * * * *")
    assert stage.last() >= before
    assert (stage.one().held, stage.one().missed, stage.one().is_paused) == (0, 1, True)
    stage.forget(3)
    stage.deploy(cron="*/2 * * * *", tz="Asia/Tokyo")
    assert stage.last() >= before


@pytest.mark.parametrize("is_removed", [True, False])
def test_without_function_or_key_there_is_no_schedule(stage: Stage, is_removed: bool) -> None:
    """Removed in the same step; the job that it made stays."""
    stage.deploy()
    stage.forget(1)
    [job] = stage.schedules.look().fired
    if is_removed:
        stage.registry.remove("tick")
    else:
        stage.deploy(has_schedule=False)
    assert stage.schedules.list() == []
    assert not stage.redis.exists(keys.cron("tick"), keys.held("tick"), keys.SCHEDULES)
    assert stage.schedules.look().next_ms is None
    assert stage.queue.show(job).state is JobState.PENDING


def test_a_schedule_that_is_not_known_here_stops_no_other(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Written by another release, or a zone that this machine lacks: told once, shown, and the others fire."""
    stage.deploy("alien")
    stage.deploy()
    stage.redis.hset(keys.cron("alien"), "tz", "Mars/Base")
    for _ in range(2):
        stage.forget(1)
        stage.forget(1, "alien")
        assert len(stage.schedules.look().fired) <= 1
    assert len(slots_of(stage)) >= 1
    assert [r.message for r in caplog.records].count(
        "the schedule of alien does not fire here: 'Mars/Base' is not a time zone; "
        "write an IANA name such as Europe/Berlin, or UTC"
    ) == 1
    assert "Mars/Base" in (stage.one("alien").problem or "")


def test_a_full_queue_is_tried_again_by_the_next_look(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost and nothing spins: the slot waits as long as any due job would."""
    stage.deploy(catchup="all")
    last = stage.forget(1)
    with monkeypatch.context() as patched:
        patched.setattr(schedules, "LIMITS", replace(LIMITS, queued_jobs=0))
        look = stage.schedules.look()
    assert (look.fired, look.next_ms, stage.last()) == ([], None, last)
    assert len(stage.schedules.look().fired) == 1


def test_the_role_of_a_runner_sleeps_until_the_next_slot(stage: Stage) -> None:
    """At most 5 s, so that a new schedule is seen soon; less when a slot comes earlier."""
    scheduler = Scheduler(lambda role, error: pytest.fail(f"{role}: {error}"), stage.schedules)
    assert scheduler.run_once() == 5.0
    stage.deploy()
    stage.forget(1)
    slept_s = scheduler.run_once()
    assert len(slots_of(stage)) == 1
    left_ms = MINUTE_MS - stage.now_ms() % MINUTE_MS
    assert slept_s == pytest.approx(min(5.0, left_ms / 1000), abs=1.0)


def test_a_unique_key_of_a_client_cannot_take_a_slot_twice(stage: Stage) -> None:
    """A job that already has the slot's key is the slot's job: decided, and not counted as fired."""
    stage.deploy()
    last = stage.forget(2)
    taken = stage.queue.enqueue(NewJob("tick", b"{}", unique_key=f"cron:tick@{last + MINUTE_MS}"))
    assert stage.fire(last + MINUTE_MS)[:2] == [b"fired", taken.id.encode()]
    assert (stage.one().last_slot_ms, stage.one().fired) == (last + MINUTE_MS, 0)


def test_one_job_per_slot_with_five_schedulers_that_die(stage: Stage, redis_url: str) -> None:
    """Processes with clocks an hour off, killed and started anew all the time: each slot has its job, and only one."""
    slots = 10_000 if IS_LONG else 2500
    stage.deploy(catchup="all")
    stage.deploy("queued", catchup="all", overlap="queue", cron="*/7 * * * *")
    last = stage.forget(slots)
    stage.redis.hset(keys.cron("queued"), "last", last)
    random = Random(4)
    offsets = [-3600, 3600, 0, -3600, 3600]

    def start(offset_s: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.tools.scheduler_process", redis_url, str(offset_s)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    running = [start(offset) for offset in offsets]
    try:
        kills, deadline_s = 0, time.monotonic() + 100
        while int(stage.redis.hget(keys.cron("tick"), "last")) < stage.now_ms() - MINUTE_MS:
            assert time.monotonic() < deadline_s, stage.one()
            victim = random.randrange(len(running))
            assert running[victim].stdout.readline() == "ready\n"
            # No more sleep than a kill needs to fall into the middle of a look.
            time.sleep(random.uniform(0, 0.4))
            running[victim].kill()
            running[victim].communicate(timeout=10)
            running[victim] = start(offsets[victim])
            kills += 1
        for process in running:
            assert process.stdout.readline() == "ready\n"
    finally:
        for process in running:
            process.kill()
            process.communicate(timeout=10)
    assert kills >= 3
    shown = stage.one()
    every = Counter(slots_of(stage))
    assert max(every.values()) == 1
    assert sorted(every) == list(range(last + MINUTE_MS, shown.last_slot_ms + 1, MINUTE_MS))
    assert shown.last_slot_ms <= stage.now_ms()
    assert (shown.fired, shown.missed) == (len(every), 0)
    queued = stage.one("queued")
    assert (queued.fired, len(slots_of(stage, "queued"))) == (1, 1)
    decided = len(cron.parse("*/7 * * * *").slots_between(last, queued.last_slot_ms, 99_999))
    assert queued.held == min(1000, decided - 1)
    assert queued.held + queued.skipped == decided - 1
