"""Cron expressions in time zones: which text is one, and at which instants it is due. Pure; reads no clock.

Five fields, ``minute hour day-of-month month day-of-week``, or ``@hourly @daily @weekly @monthly @yearly``. The grammar
is closed and our own: what is not understood for sure is refused with the sentence that says what is right. croniter
only walks the calendar, in a world without time zones; every question of a zone is answered here, since croniter
answers some of them wrong (docs/decisions/0006). The rules are those of Debian's cron:

- A day must match both day fields when one of them starts with ``*``, else one of the two is enough.
- Minute or hour start with ``*``: the job follows real time. A wall-clock time that comes twice is due twice, one that
  does not come is not due.
- Else the job has fixed times, each due exactly once a matching day: at the first of two, and when the clock jumps over
  it, at the moment after the jump. Times that end up at one instant are one slot.

Slots are Unix ms. Called by ``bananas.spec`` and the manifest to check, by ``bananas.schedules`` to plan.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
#: The longest text that is looked at.
MAX_CHARS: Final = 300
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTH_DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ITEM: Final = re.compile(r"(?:(\*)|([0-9]{1,9}|[a-z]{3})(?:-([0-9]{1,9}|[a-z]{3}))?)(?:/([0-9]{1,9}))?")
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,30}(?:/[A-Za-z0-9_+-]{1,30}){0,2}")
#: Files beside the zones that are none, or count leap seconds.
_NO_ZONES: Final = ("posix/", "right/", "localtime", "posixrules", "Factory")
_MINUTE_S: Final = 60
_DAY_S: Final = 86400
_EPOCH: Final = datetime(1970, 1, 1)
#: Where the search for a slot ends; rare days such as a 29th of February on a Monday come every 40 years at most.
_HORIZON_S: Final = 50 * 366 * _DAY_S
#: Instants beyond this are refused: the year 9000.
MAX_MS: Final = 221_845_392_000_000


@dataclass(frozen=True, slots=True)
class _Field:
    """One of the five: its name and what its numbers may be."""

    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()

    def parse(self, text: str) -> frozenset[int]:
        """The numbers that the text means; raises ValueError with the finished sentence."""
        found: set[int] = set()
        for item in text.split(","):
            found |= self._item(item)
        return frozenset(found)

    def _item(self, item: str) -> set[int]:
        match = _ITEM.fullmatch(item.lower())
        if match is None:
            raise ValueError(f"{self.name} {item!r} is not valid; write {self._right()}")
        star, first, last, step_text = match.groups()
        low = self.low if star else self._number(first)
        high = self.high if star else self._number(last) if last else low
        if low > high:
            raise ValueError(f"{self.name} {item!r} goes backwards; write the smaller one first, or a list")
        if step_text is None:
            return set(range(low, high + 1))
        step = int(step_text)
        if not star and not last:
            raise ValueError(f"{self.name} {item!r} has a step without a range; write {first}-{self.high}/{step}")
        if not 1 <= step <= self.high:
            raise ValueError(f"{self.name} {item!r} has a step out of range; write 1 to {self.high}")
        return set(range(low, high + 1, step))

    def _number(self, text: str) -> int:
        if text in self.words:
            return self.words.index(text) + (1 if self.low else 0)
        if not text.isdigit() or not self.low <= int(text) <= self.high:
            raise ValueError(f"{self.name} {text!r} is not valid; write {self._right()}")
        return int(text)

    def _right(self) -> str:
        words = f" or {self.words[0]} to {self.words[-1]}" if self.words else ""
        return f"{self.low} to {self.high}{words}, *, ranges such as {self.low}-{self.low + 2}, */2, or a list of them"


_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked expression in a zone. Make it with ``parse``."""

    #: As it was written.
    text: str
    #: IANA name.
    tz: str
    #: The five fields in numbers, for croniter.
    _walk: str
    #: Both day fields must match.
    _is_day_and: bool
    #: Follows real time instead of having fixed times.
    _is_wild: bool

    def next_after(self, instant_ms: int) -> int | None:
        """The first slot later than the instant; None when there is none within 50 years."""
        return next(self._slots(instant_ms), None)

    def slots_between(self, after_ms: int, until_ms: int, limit: int) -> list[int]:
        """Slots later than ``after_ms`` and not later than ``until_ms``, oldest first, at most ``limit``."""
        found: list[int] = []
        for slot in self._slots(after_ms):
            if slot > until_ms or len(found) >= limit:
                break
            found.append(slot)
        return found

    def latest(self, after_ms: int, until_ms: int) -> int | None:
        """The newest slot later than ``after_ms`` and not later than ``until_ms``, without going through all."""
        low, back_ms = after_ms, 60_000
        while until_ms - back_ms > after_ms:
            if self._is_due(until_ms - back_ms, until_ms):
                low = until_ms - back_ms
                break
            back_ms *= 2
        slot = self.next_after(low)
        if slot is None or slot > until_ms:
            return None
        # The answer is at or after `slot`, and nothing is after `high`.
        high = until_ms
        while high - slot > 60_000:
            middle = (slot + high) // 2
            later = self.next_after(middle)
            if later is not None and later <= until_ms:
                slot = later
            else:
                high = middle
        return self.slots_between(slot - 1, until_ms, 60)[-1]

    def upcoming(self, after_ms: int, count: int) -> list[int]:
        """The next slots later than the instant, at most ``count``."""
        return self.slots_between(after_ms, MAX_MS, count)

    def _is_due(self, after_ms: int, until_ms: int) -> bool:
        slot = self.next_after(after_ms)
        return slot is not None and slot <= until_ms

    def _slots(self, after_ms: int) -> Iterator[int]:
        """Every slot later than the instant, oldest first, each once."""
        if not isinstance(after_ms, int) or not 0 <= after_ms <= MAX_MS:
            raise ValueError(f"{after_ms!r} is not an instant; give Unix ms from 0 to {MAX_MS}")
        after_s = after_ms // 1000
        slots = self._wild if self._is_wild else self._fixed
        for slot_s in slots(after_s, ZoneInfo(self.tz)):
            yield slot_s * 1000

    def _walker(self) -> Callable[[int], int | None]:
        """A function from a wall-clock time to the next matching one; both in seconds as if the zone were UTC."""
        from croniter import CroniterBadDateError, croniter

        walk = croniter(self._walk, 0.0, day_or=not self._is_day_and)

        def following(wall_s: int) -> int | None:
            try:
                found = int(walk.get_next(float, start_time=float(wall_s)))
            except CroniterBadDateError:
                return None
            return found if found - wall_s <= _HORIZON_S else None

        return following

    def _fixed(self, after_s: int, zone: ZoneInfo) -> Iterator[int]:
        following = self._walker()
        wall_s: int | None = after_s + _offset_s(zone, after_s)
        while wall_s is not None and (wall_s := following(wall_s)) is not None:
            # Grows with the wall clock: so in the second pass of a repeated hour, all of it lies before `after_s`.
            instant_s = _first_instant_s(zone, wall_s)
            if instant_s > after_s:
                yield instant_s
                after_s = instant_s

    def _wild(self, after_s: int, zone: ZoneInfo) -> Iterator[int]:
        following = self._walker()
        ends_s = after_s + _HORIZON_S
        at_s, offset_s = after_s, _offset_s(zone, after_s)
        while at_s < ends_s and (wall_s := following(at_s + offset_s)) is not None:
            slot_s = wall_s - offset_s
            change_s = next(_changes_s(zone, at_s, slot_s), None)
            if change_s is None:
                yield slot_s
                at_s, ends_s = slot_s, slot_s + _HORIZON_S
            else:  # until there nothing is due; from there on the wall clock is another
                offset_s = _offset_s(zone, change_s)
                if (wall_s := following(change_s + offset_s - 1)) == change_s + offset_s:
                    yield change_s
                    ends_s = change_s + _HORIZON_S
                at_s = change_s


def parse(text: str, tz: str = "UTC") -> Cron:
    """Check an expression and a zone; raises ValueError with a finished sentence that names what is wrong.

    >>> parse("@daily", "Europe/Berlin").next_after(0)
    82800000
    """
    check_zone(tz)
    return _parse(text, tz)


def check(text: str) -> None:
    """Raises ValueError unless the text is an expression."""
    _parse(text, "UTC")


@lru_cache(maxsize=4096)
def _parse(text: str, tz: str) -> Cron:
    parts = _parts(text)
    numbers = [field.parse(part) for field, part in zip(_FIELDS, parts, strict=True)]
    minutes, hours, days, months, weekdays = numbers
    is_day_and = parts[2].startswith("*") or parts[4].startswith("*")
    longest = max(_MONTH_DAYS[month - 1] for month in months)
    if is_day_and and min(days) > longest:
        raise ValueError(f"{text!r} never comes: no such month has a day {min(days)}; write a day up to {longest}")
    every_day = len(days) == 31 and is_day_and
    weekdays = frozenset(day % 7 for day in weekdays)
    every_weekday = len(weekdays) == 7 and is_day_and
    walk = [
        _listed(minutes, len(minutes) == 60),
        _listed(hours, len(hours) == 24),
        _listed(days, every_day),
        _listed(months, len(months) == 12),
        _listed(weekdays, every_weekday),
    ]
    is_wild = parts[0].startswith("*") or parts[1].startswith("*")
    return Cron(text, tz, " ".join(walk), is_day_and, is_wild)


def _parts(text: str) -> list[str]:
    if len(text) > MAX_CHARS:
        raise ValueError(f"an expression of {len(text)} characters is too long; write at most {MAX_CHARS}")
    known = ", ".join(ALIASES)
    stripped = text.strip(" \t")
    if stripped.startswith("@"):
        if stripped not in ALIASES:
            close = difflib.get_close_matches(stripped, ALIASES, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; write one of {known}, or five fields"
            raise ValueError(f"{stripped!r} is not known{hint}")
        stripped = ALIASES[stripped]
    parts = [part for part in re.split(r"[ \t]+", stripped) if part]
    if len(parts) != 5:
        no_more = "; seconds and years are not supported" if len(parts) > 5 else f", or one of {known}"
        raise ValueError(
            f"{text!r} has {len(parts)} field{'s'[: len(parts) != 1]}; "
            f"write five: minute hour day-of-month month day-of-week{no_more}"
        )
    return parts


def _listed(numbers: frozenset[int], is_all: bool) -> str:
    return "*" if is_all else ",".join(str(number) for number in sorted(numbers))


@lru_cache(maxsize=1024)
def check_zone(tz: str) -> None:
    """Raises ValueError unless it is the name of an IANA time zone that this machine knows."""
    try:
        if not _ZONE.fullmatch(tz) or tz.startswith(_NO_ZONES):
            raise ValueError(tz)
        ZoneInfo(tz)
    except (KeyError, ValueError, OSError) as e:  # OSError: a folder of zones, such as Europe
        raise ValueError(f"{tz!r} is not a time zone{_zone_hint(tz)}") from e


def _zone_hint(tz: str) -> str:
    known = {name.lower(): name for name in available_timezones()}
    ends = {name.rpartition("/")[2]: name for name in sorted(known)}
    wanted = tz.lower().replace(" ", "_")
    if (city := ends.get(wanted)) is not None:
        return f"; did you mean {known[city]!r}?"
    close = difflib.get_close_matches(wanted, known, n=1)
    return f"; did you mean {known[close[0]]!r}?" if close else "; write an IANA name such as Europe/Berlin, or UTC"


# -- zones ---------------------------------------------------------------------------------------------------------


def _offset_s(zone: ZoneInfo, instant_s: int) -> int:
    """Seconds that the zone's wall clock is ahead of UTC at the instant."""
    offset = datetime.fromtimestamp(instant_s, zone).utcoffset()
    assert offset is not None  # a ZoneInfo always knows
    return offset // timedelta(seconds=1)


def _first_instant_s(zone: ZoneInfo, wall_s: int) -> int:
    """When the wall clock first shows that time; if it jumps over it, the end of the jump."""
    wall = (_EPOCH + timedelta(seconds=wall_s)).replace(tzinfo=zone)
    instant_s = int(wall.timestamp())  # fold=0: the first of two; in a gap, as if the old offset went on
    if instant_s + _offset_s(zone, instant_s) == wall_s:
        return instant_s
    *_, jump_s = _changes_s(zone, instant_s - _DAY_S, instant_s)  # no clock ever jumped further than a day
    return jump_s


def _changes_s(zone: ZoneInfo, after_s: int, until_s: int) -> Iterator[int]:
    """The instants in (after, until] at which the zone has another offset than a second before."""
    first, last = (datetime.fromtimestamp(s, UTC).year for s in (after_s, until_s))
    for year in range(first, last + 1):
        yield from (change_s for change_s in _changes_of(zone.key, year) if after_s < change_s <= until_s)


@lru_cache(maxsize=8192)
def _changes_of(tz: str, year: int) -> tuple[int, ...]:
    """Every change of the zone's offset in a year of UTC. None of them undoes another one of the same day."""
    zone = ZoneInfo(tz)
    start_s, end_s = (int(datetime(y, 1, 1, tzinfo=UTC).timestamp()) - 1 for y in (year, year + 1))
    found = []
    before = _offset_s(zone, start_s)
    for day_s in range(start_s, end_s, _DAY_S):
        day_end_s = min(day_s + _DAY_S, end_s)
        if (after := _offset_s(zone, day_end_s)) == before:
            continue
        low, high = day_s, day_end_s
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _offset_s(zone, middle) == before else (low, middle)
        found.append(high)
        before = after
    return tuple(found)
