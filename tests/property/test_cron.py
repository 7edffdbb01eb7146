"""Slots of cron expressions in every IANA zone, 2020 to 2040, against two others: cronsim, and a minute-by-minute look.

The look reads the rules as they are written in ``bananas.cron`` and asks the zone for each minute of real time, so it
shares nothing with the code under test. cronsim shares nothing with either, and is wrong itself in a few places, which
``cronsim_is_right`` names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, available_timezones

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from bananas import cron

pytestmark = pytest.mark.usefixtures("untraced")

IS_LONG = os.environ.get("BANANAS_HYPOTHESIS") == "long"
EXAMPLES = 5000 if IS_LONG else 400
ZONES = sorted(zone for zone in available_timezones() if zone not in ("localtime", "Factory", "posixrules"))
START = datetime(2020, 1, 1, tzinfo=UTC)
END = datetime(2041, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    found = instant.astimezone(zone).utcoffset()
    assert found is not None
    return found


@cache
def changes(name: str) -> tuple[datetime, ...]:
    """Every instant at which the zone's offset changes: found by looking at each 12 hours, then halving."""
    zone, found, at = ZoneInfo(name), [], START
    now = offset(zone, at)
    while at < END:
        after = at + 12 * HOUR
        earlier, now = now, offset(zone, after)
        if earlier != now:
            low, high = at, after
            while high - low > MINUTE:
                middle = low + (high - low) // 2
                middle -= timedelta(seconds=middle.second, microseconds=middle.microsecond)
                low, high = (middle, high) if offset(zone, middle) == earlier else (low, middle)
            found.append(high)
        at = after
    return tuple(found)


@cache
def different_zones() -> tuple[str, ...]:
    """One name of each table that the time zone database has; the others are links to it."""
    seen: dict[bytes, str] = {}
    for name in ZONES:
        at_home = next((path for root in TZPATH if (path := Path(root) / name).is_file()), None)
        table = at_home or resources.files("tzdata") / "zoneinfo" / name
        seen.setdefault(table.read_bytes(), name)
    return tuple(seen.values())


def ms(instant: datetime) -> int:
    return int(instant.timestamp()) * 1000


def field(low: int, high: int, *, star: bool = True) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    pairs = st.tuples(number, number).map(sorted)
    ranges = pairs.map(lambda pair: f"{pair[0]}-{pair[1]}")
    # cronsim takes 3-3/2 for 3/2, and that for 3-59/2.
    wide = pairs.filter(lambda pair: pair[0] < pair[1]).map(lambda pair: f"{pair[0]}-{pair[1]}")
    steps = st.tuples(wide, st.integers(1, high)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    items = number.map(str) | ranges | steps
    lists = st.lists(items, min_size=1, max_size=3).map(",".join)
    starred = st.just("*") | st.integers(1, high).map(lambda step: f"*/{step}")
    return starred | lists if star else lists


#: Minutes and hours are often around those of the changes, so that the interesting hours are met.
minutes = field(0, 59) | st.sampled_from(["0", "30", "15,45", "*/15", "*/30", "*"])
hours = field(0, 23) | st.sampled_from(["0", "1", "2", "3", "0-3", "*", "*/2", "23,0"])
days = st.just("*") | field(1, 31)
months = st.just("*") | field(1, 12)
weekdays = st.just("*") | field(0, 7)
expressions = st.tuples(minutes, hours, days, months, weekdays).map(" ".join)


@st.composite
def moments(draw: st.DrawFn) -> tuple[str, datetime]:
    """A zone and an instant; more often than not shortly before its offset changes."""
    name = draw(st.sampled_from(ZONES))
    near = changes(name)
    if near and draw(st.integers(0, 3)):
        at = draw(st.sampled_from(near)) - draw(st.integers(-180, 2000)) * MINUTE
    else:
        at = START + draw(st.integers(0, 20 * 365 * 1440)) * MINUTE
    return name, at


def parsed(text: str, tz: str) -> cron.Cron | None:
    """None for a day that no month has; everything else that is generated here is an expression."""
    try:
        return cron.parse(text, tz)
    except ValueError as e:
        assert "never comes" in str(e), text  # noqa: PT017
        return None


def numbers(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for item in text.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        start, end = (low, high) if span == "*" else (int(first), int(last or first))
        found |= set(range(start, end + 1, int(step or 1)))
    return found


class Look:
    """Which wall-clock times match, straight from the text."""

    def __init__(self, text: str) -> None:
        parts = text.split()
        bounds = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
        self.sets = [numbers(part, *bound) for part, bound in zip(parts, bounds, strict=True)]
        self.is_and = parts[2][0] == "*" or parts[4][0] == "*"
        self.is_wild = parts[0][0] == "*" or parts[1][0] == "*"

    def matches(self, wall: datetime) -> bool:
        minutes, hours, days, months, weekdays = self.sets
        day = wall.day in days
        weekday = wall.isoweekday() in weekdays or wall.isoweekday() % 7 in weekdays
        is_day = (day and weekday) if self.is_and else (day or weekday)
        return wall.minute in minutes and wall.hour in hours and wall.month in months and is_day

    def slots(self, zone: ZoneInfo, after: datetime, until: datetime) -> Iterator[int]:
        """Due minutes of real time in (after, until]."""
        at = after.replace(second=0, microsecond=0)
        now = at.astimezone(zone)
        while (at := at + MINUTE) <= until:
            before, now = now, at.astimezone(zone)
            wall = now.replace(tzinfo=None)
            step = (now.utcoffset() or timedelta(0)) - (before.utcoffset() or timedelta(0))
            if self.is_wild:
                is_due = self.matches(wall)
            else:
                is_due = now.fold == 0 and self.matches(wall)
                # The clock jumped over these.
                skipped = before.replace(tzinfo=None) + MINUTE
                while step > timedelta(0) and skipped < wall:
                    is_due = is_due or self.matches(skipped)
                    skipped += MINUTE
            if is_due:
                yield ms(at)


@settings(max_examples=EXAMPLES)
@given(expressions, moments())
def test_slots_are_those_that_a_look_at_every_minute_finds(text: str, moment: tuple[str, datetime]) -> None:
    """Around any change of any zone, no slot is lost, doubled or moved."""
    name, at = moment
    schedule = parsed(text, name)
    if schedule is None:
        return
    until = at + 30 * HOUR
    assert schedule.slots_between(ms(at), ms(until), 10_000) == list(Look(text).slots(ZoneInfo(name), at, until))


def cronsim_is_right(text: str, name: str, instants: list[datetime]) -> bool:
    """cronsim steps by whole hours of real time from minute 0, and starts days at a midnight that may not exist.

    So a schedule that follows real time goes wrong in it where a zone changes by a part of an hour, and where the clock
    jumps over midnight.
    """
    zone = ZoneInfo(name)
    first, last = min(instants) - 48 * HOUR, max(instants) + 48 * HOUR
    for change in changes(name):
        if Look(text).is_wild and first < change < last:
            step = offset(zone, change) - offset(zone, change - MINUTE)
            wall = (change - MINUTE).astimezone(zone).replace(tzinfo=None) + MINUTE
            if step % HOUR or (step > timedelta(0) and wall.hour == 0):
                return False
    return True


@settings(max_examples=3 * EXAMPLES)
@given(expressions, moments())
def test_slots_are_those_of_cronsim(text: str, moment: tuple[str, datetime]) -> None:
    """Another implementation of the same rules, over any distance, agrees."""
    name, at = moment
    schedule = parsed(text, name)
    if schedule is None:
        return
    ours = schedule.upcoming(ms(at), 12)
    sim = CronSim(text, at.astimezone(ZoneInfo(name)))
    theirs: list[datetime] = []
    while len(theirs) < 12:
        instant = next(sim).astimezone(UTC)
        # A fixed time in a repeated hour is at its first pass: cronsim yields it once more when asked in the second.
        if instant > at and (not theirs or instant > theirs[-1]):
            theirs.append(instant)
    if cronsim_is_right(text, name, [at, *theirs]):
        assert ours == [ms(instant) for instant in theirs]


@settings(max_examples=EXAMPLES)
@given(expressions, moments(), st.integers(0, 100_000))
def test_latest_is_the_last_of_all(text: str, moment: tuple[str, datetime], span_min: int) -> None:
    """The newest slot of a span is found without going through it."""
    name, at = moment
    schedule = parsed(text, name)
    if schedule is None:
        return
    until = ms(at + span_min * MINUTE)
    every = schedule.slots_between(ms(at), until, 3000)
    if len(every) < 3000:
        assert schedule.latest(ms(at), until) == (every[-1] if every else None)


@pytest.mark.parametrize("part", range(8))
def test_a_daily_job_is_due_once_a_day_at_every_change_of_every_zone(part: int) -> None:
    """A fixed time in the hour that is skipped or repeated: once on that day, at each change from 2020 to 2040."""
    for name in different_zones()[part::8]:
        zone = ZoneInfo(name)
        for change in changes(name):
            before = (change - MINUTE).astimezone(zone).replace(tzinfo=None) + MINUTE
            after = change.astimezone(zone).replace(tzinfo=None)
            low, high = min(before, after), max(before, after)
            inside = low + (high - low) // 2
            schedule = cron.parse(f"{inside.minute} {inside.hour} * * *", name)
            slots = schedule.slots_between(ms(change - 36 * HOUR), ms(change + 36 * HOUR), 9)
            walls = [datetime.fromtimestamp(slot / 1000, zone).replace(tzinfo=None) for slot in slots]
            if after > before:  # skipped: at the moment after
                assert ms(change) in slots, (name, change, walls)
                expected = after
            else:  # repeated: at the first of the two
                assert ms(change - (before - inside)) in slots, (name, change, walls)
                expected = inside
            assert [wall for wall in walls if abs(wall - expected) < 12 * HOUR] == [expected], (name, change, walls)
            assert len(slots) == 3, (name, change, walls)
