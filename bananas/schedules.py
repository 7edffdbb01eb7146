"""Schedules: when functions are called by themselves, and that each slot makes one job.

Every runner looks at all schedules (``Schedules.look``) and proposes slots to ``fire.lua``, which decides each exactly
once, by Redis' clock. What a slot is, ``bananas.cron`` says; which of several due ones fire, ``_proposals`` here. The
registry sets and removes schedules in the transactions in which it switches and removes functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from bananas import cron, errors, events, keys, scripts
from bananas.job import new_job_id
from bananas.redis_client import Connections, unix_ms
from bananas.settings import LIMITS
from bananas.spec import ScheduleSpec

#: A slot that is older when somebody first looks is late, and ``catchup`` decides about it.
LATE_MS: Final = 60_000
#: Slots that one look decides, of one schedule and of all. The rest is left for the next look.
LOOK_SLOTS: Final = 1000
#: Slots shown in advance.
SHOWN: Final = 5
#: Whether the job before is over is looked up this often.
_HELD_MS: Final = 1000
_FIELDS: Final = ("rev", "cron", "tz", "catchup", "paused", "last", "overlap", "job", "slot")
_COUNTS: Final = ("cron_fired", "cron_skipped", "cron_missed")


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule right now."""

    function: str
    cron: str
    tz: str
    catchup: str
    overlap: str
    is_paused: bool
    #: Unix ms of the slot that was decided last, fired or not; None when none was.
    last_slot_ms: int | None
    #: Unix ms, at most five; what would fire if it were not paused.
    next_ms: list[int]
    #: The job that was made last.
    last_job: str | None
    #: Slots that wait until that job is over.
    held: int
    fired: int
    skipped: int
    missed: int
    #: Why it cannot fire on this machine, such as a zone that is not known here.
    problem: str | None = None


@dataclass(slots=True)
class Look:
    """What one look did."""

    #: Job ids.
    fired: list[str] = field(default_factory=list)
    #: ms until there is something to do; None when nothing is planned.
    next_ms: int | None = None

    def again_in(self, ms: int) -> None:
        """Something is to be done in that many ms."""
        self.next_ms = max(0, ms) if self.next_ms is None else min(self.next_ms, max(0, ms))


@dataclass(frozen=True, slots=True)
class _Row:
    """A schedule as it is stored."""

    function: str
    rev: str
    cron: str
    tz: str
    catchup: str
    is_paused: bool
    last_ms: int
    overlap: str
    job: str | None
    slot_ms: int | None
    held: int


def check(function: str, spec: ScheduleSpec) -> None:
    """Raises InvalidRequest unless the expression and the zone are known here.

    Not a part of the spec itself: what was deployed once must stay readable where zones or releases differ.
    """
    try:
        cron.parse(spec.cron, spec.tz)
    except ValueError as e:
        raise errors.InvalidRequest(f"schedule of function {function!r}: {e}") from e


def set_in(pipe: Any, run: scripts.Caller, function: str, spec: ScheduleSpec | None) -> None:
    """Add to a transaction: this is the function's schedule from now on; None: it has none."""
    if spec is None:
        run.add(pipe, "plan", function, "remove")
        return
    revision = hashlib.sha256(spec.encode()).hexdigest()[:12]
    payload = msgspec.json.encode(spec.payload)
    run.add(pipe, "plan", function, "set", revision, spec.cron, spec.tz, spec.catchup, spec.overlap, payload)


_Answer = list[Any]
_Rows = list[_Row]
_Listed = list[Schedule]


class Schedules:
    """All schedules, over one set of connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._run = scripts.Caller(connections).run
        #: Function → revision, last slot and the slot after it.
        self._next: dict[str, tuple[str, int, int | None]] = {}
        #: Functions and revisions that were complained about.
        self._told: set[tuple[str, str]] = set()

    # -- operating --------------------------------------------------------------------------------------------

    def list(self) -> _Listed:
        """Every schedule, by function."""
        now_ms, rows = self._rows()
        names = [f"{count}:{row.function}" for row in rows for count in _COUNTS]
        with self._connections.guard():
            counts = [int(n or 0) for n in self._connections.commands.hmget(keys.COUNTERS, names)] if names else []
        return [_shown(row, now_ms, counts[3 * i : 3 * i + 3]) for i, row in enumerate(rows)]

    def pause(self, function: str) -> bool:
        """Let nothing fire until ``resume``; False when it was so. Raises UnknownSchedule."""
        return self._switch(function, "pause")

    def resume(self, function: str) -> bool:
        """Go on from now; False when it was not paused. Raises UnknownSchedule."""
        return self._switch(function, "resume")

    def _switch(self, function: str, operation: str) -> bool:
        changed = int(self._run("plan", function, operation))
        if changed < 0:
            raise errors.UnknownSchedule(f"function {function!r} has no schedule", function=function)
        return bool(changed)

    # -- firing -----------------------------------------------------------------------------------------------

    def look(self) -> Look:
        """Propose every slot that is due, of all schedules; any number of processes may do so at once."""
        look = Look()
        now_ms, rows = self._rows()
        self._next = {row.function: self._next[row.function] for row in rows if row.function in self._next}
        for row in rows:
            if row.is_paused:
                continue
            if row.held:
                self._release(row, look)
            try:
                schedule = cron.parse(row.cron, row.tz)
            except ValueError as e:
                self._complain(row, e)
                continue
            following = self._following(row, schedule, row.last_ms)
            if following is None:
                continue
            if following > now_ms:
                look.again_in(following - now_ms)
            elif len(look.fired) >= LOOK_SLOTS:
                look.again_in(0)
            else:
                self._propose_due(row, schedule, now_ms, look)
        return look

    def _following(self, row: _Row, schedule: cron.Cron, last_ms: int) -> int | None:
        known = self._next.get(row.function)
        if known is None or known[:2] != (row.rev, last_ms):
            known = self._next[row.function] = (row.rev, last_ms, schedule.next_after(last_ms))
        return known[2]

    def _propose_due(self, row: _Row, schedule: cron.Cron, now_ms: int, look: Look) -> None:
        last_ms = row.last_ms
        for slot_ms, is_out, missed in _proposals(schedule, row.catchup, last_ms, now_ms):
            answer = self._fire(row, slot_ms, "" if is_out else new_job_id(), missed)
            match answer[0]:
                case b"fired":
                    look.fired.append(answer[1].decode())
                case b"held":
                    look.again_in(_HELD_MS)
                case b"skipped" | b"passed":
                    pass
                case b"past":  # another scheduler was first
                    last_ms = max(last_ms, int(answer[1]))
                    continue
                case b"early":  # the server's clock was set back
                    return look.again_in(slot_ms - int(answer[1]))
                case b"full":
                    events.SCHEDULE_WAITS(slot_ms=slot_ms, function=row.function)
                    return None
                case _:  # paused, changed or removed since it was read
                    return look.again_in(0)
            last_ms = slot_ms
        following = self._following(row, schedule, last_ms)
        if following is not None:
            look.again_in(following - now_ms)
        return None

    def _release(self, row: _Row, look: Look) -> None:
        """Fire the oldest of the slots that wait, if the job before is over."""
        answer = self._fire(row, "", new_job_id(), 0)
        if answer[0] == b"fired":
            look.fired.append(answer[1].decode())
        if answer[0] in (b"fired", b"held"):
            look.again_in(_HELD_MS)

    def _fire(self, row: _Row, slot_ms: int | str, job_id: str, missed: int) -> _Answer:
        limits = (LIMITS.queued_jobs, LIMITS.schedule_held)
        answer: _Answer = self._run("fire", row.function, row.rev, slot_ms, job_id, missed, *limits)
        return answer

    def _complain(self, row: _Row, error: ValueError) -> None:
        if (row.function, row.rev) not in self._told:
            self._told.add((row.function, row.rev))
            events.SCHEDULE_BROKEN(function=row.function, error=error)

    def _rows(self) -> tuple[int, _Rows]:
        """Unix ms of Redis, and every schedule by function."""
        with self._connections.guard():
            client = self._connections.commands
            functions = sorted(name.decode() for name in client.smembers(keys.SCHEDULES))
            pipe = client.pipeline(transaction=False)
            pipe.time()
            for function in functions:
                pipe.hmget(keys.cron(function), _FIELDS)
                pipe.llen(keys.held(function))
            now, *raw = pipe.execute()
        found = zip(functions, raw[::2], raw[1::2], strict=True)
        rows = [_row(function, values, held) for function, values, held in found if values[0] is not None]
        return unix_ms(now), rows


def _row(function: str, values: list[bytes | None], held: int) -> _Row:
    rev, text, tz, catchup, paused, last, overlap, job, slot = ((value or b"").decode() for value in values)
    decided = int(slot) if slot else None
    return _Row(function, rev, text, tz, catchup, paused == "1", int(last), overlap, job or None, decided, held)


def _shown(row: _Row, now_ms: int, counts: list[int]) -> Schedule:
    problem, following = None, []
    try:
        following = cron.parse(row.cron, row.tz).upcoming(max(now_ms, row.last_ms), SHOWN)
    except ValueError as e:
        problem = str(e)
    fired, skipped, missed = counts
    return Schedule(
        function=row.function,
        cron=row.cron,
        tz=row.tz,
        catchup=row.catchup,
        overlap=row.overlap,
        is_paused=row.is_paused,
        last_slot_ms=row.slot_ms,
        next_ms=following,
        last_job=row.job,
        held=row.held,
        fired=fired,
        skipped=skipped,
        missed=missed,
        problem=problem,
    )


def _proposals(schedule: cron.Cron, catchup: str, last_ms: int, now_ms: int) -> Iterator[tuple[int, bool, int]]:
    """Slots to decide, oldest first: the slot, whether it is left out, and how many are left out up to it."""
    late_ms = now_ms - LATE_MS
    late = schedule.slots_between(last_ms, late_ms, LOOK_SLOTS) if catchup != "all" else []
    if not late:
        for slot_ms in schedule.slots_between(last_ms, now_ms, LOOK_SLOTS):
            yield slot_ms, False, 0
        return
    newest_ms = schedule.latest(last_ms, late_ms) or late[-1]
    in_time = schedule.slots_between(newest_ms, now_ms, LOOK_SLOTS)
    if catchup == "last" and not in_time:
        yield newest_ms, False, len(late) - 1
    else:
        yield newest_ms, True, len(late)
    for slot_ms in in_time:
        yield slot_ms, False, 0
