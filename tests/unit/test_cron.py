"""Cron expressions: what is refused with which words, and when jobs are due where clocks jump."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from bananas import cron


def at(text: str, tz: str = "UTC", fold: int = 0) -> int:
    """Unix ms of a wall-clock time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(tz), fold=fold).timestamp() * 1000)


def upcoming(text: str, tz: str, after: str, count: int) -> list[str]:
    """The next slots as wall-clock times with their offset, without year and seconds."""
    slots = cron.parse(text, tz).upcoming(at(after, tz), count)
    return [f"{datetime.fromtimestamp(slot / 1000, ZoneInfo(tz)):%m-%d %H:%M%z}" for slot in slots]


# -- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 0 * * * *", "has 6 fields; write five.*seconds and years are not supported"),
        ("0 0 0 1 1 * 2030", "has 7 fields"),
        ("0 0 * *", "has 4 fields; write five: minute hour day-of-month month day-of-week, or one of @hourly"),
        ("", "has 0 fields"),
        ("0\n0 * * *", "has 4 fields"),
        ("0\u00a00 * * * *", "minute"),
        ("H * * * *", "minute 'H' is not valid; write 0 to 59"),
        ("R(0-9) 0 * * *", r"minute 'R\(0-9\)' is not valid"),
        ("0 0 L * *", "day of month 'L' is not valid; write 1 to 31"),
        ("0 0 15W * *", "day of month '15W'"),
        ("0 0 ? * *", r"day of month '\?'"),
        ("0 0 * * 1#2", "day of week '1#2' is not valid; write 0 to 7 or sun to sat"),
        ("0 0 * foo *", "month 'foo' is not valid; write 1 to 12 or jan to dec"),
        ("0 0 * mon *", "month 'mon'"),
        ("60 * * * *", "minute '60' is not valid"),
        ("* 24 * * *", "hour '24' is not valid"),
        ("* * 0 * *", "day of month '0' is not valid"),
        ("* * * * 8", "day of week '8' is not valid"),
        ("-1 * * * *", "minute '-1' is not valid"),
        ("1,,2 * * * *", "minute '' is not valid"),
        ("٣ * * * *", "minute '٣' is not valid"),
        ("0 0 * * fri-mon", "goes backwards; write the smaller one first"),
        ("5/15 * * * *", "has a step without a range; write 5-59/15"),
        ("*/0 * * * *", "step out of range; write 1 to 59"),
        ("*/60 * * * *", "step out of range; write 1 to 59"),
        ("0 0 30 2 *", "never comes: no such month has a day 30; write a day up to 29"),
        ("0 0 31 4,6,9,11 *", "never comes: .* day 31; write a day up to 30"),
        ("@dayly", "'@dayly' is not known; did you mean @daily"),
        ("@reboot", "'@reboot' is not known; write one of @hourly"),
        ("* " * 200, "400 characters is too long; write at most 300"),
    ],
)
def test_what_is_not_understood_for_sure_is_refused(text: str, says: str) -> None:
    """The error names the field, what is wrong and what would be right."""
    with pytest.raises(ValueError, match=says):
        cron.parse(text)


@pytest.mark.parametrize(
    ("tz", "says"),
    [
        ("Berlin", "'Berlin' is not a time zone; did you mean 'Europe/Berlin'"),
        ("europe/berlin", "did you mean 'Europe/Berlin'"),
        ("Europe", "is not a time zone; did you mean"),
        ("new york", "did you mean 'America/New_York'"),
        ("../../etc/passwd", "write an IANA name such as Europe/Berlin, or UTC"),
        ("/usr/share/zoneinfo/UTC", "is not a time zone"),
        ("right/UTC", "is not a time zone"),
        ("localtime", "is not a time zone"),
        ("", "is not a time zone"),
        ("UTC\0", "is not a time zone"),
    ],
)
def test_an_unknown_zone_is_named(tz: str, says: str) -> None:
    """Only names of zones are looked up, and the nearest one is offered."""
    with pytest.raises(ValueError, match=says):
        cron.parse("@daily", tz)


@pytest.mark.parametrize("instant", [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), -1, cron.MAX_MS + 1, 1.5])
def test_only_instants_are_taken(instant: object) -> None:
    """A datetime, naive ones above all, would leave open which instant is meant."""
    with pytest.raises(ValueError, match="is not an instant; give Unix ms"):
        cron.parse("@daily").next_after(instant)  # type: ignore[arg-type]


def test_names_and_aliases_mean_what_crontab_says() -> None:
    """Names in any case; 7 is Sunday."""
    assert upcoming("0 9 * JAN-mar Mon,WED", "UTC", "2026-01-01T00:00", 2) == ["01-05 09:00+0000", "01-07 09:00+0000"]
    for sunday in ("0", "7", "sun", "7-7", "0-0"):
        assert upcoming(f"0 9 * * {sunday}", "UTC", "2026-01-01T00:00", 1) == ["01-04 09:00+0000"]
    assert upcoming("0 9 * * 5-7", "UTC", "2026-01-01T09:00", 3) == [f"01-0{day} 09:00+0000" for day in (2, 3, 4)]
    firsts = {name: upcoming(name, "UTC", "2026-01-01T00:00", 1) for name in cron.ALIASES}
    assert firsts == {
        "@hourly": ["01-01 01:00+0000"],
        "@daily": ["01-02 00:00+0000"],
        "@weekly": ["01-04 00:00+0000"],
        "@monthly": ["02-01 00:00+0000"],
        "@yearly": ["01-01 00:00+0000"],
    }


def test_a_single_number_is_no_whole_field() -> None:
    """3-3 is 3: croniter alone reads it as every number."""
    assert upcoming("3-3 4-4 * * *", "UTC", "2026-01-01T00:00", 2) == ["01-01 04:03+0000", "01-02 04:03+0000"]


def test_days_of_month_and_week_are_joined_as_in_debian() -> None:
    """With a star at the start of one, both must match; else one is enough."""
    fridays = [f"02-{day} 00:00+0000" for day in ("06", "13", "20")]
    assert upcoming("0 0 13 * 5", "UTC", "2026-02-01T00:00", 3) == fridays
    assert upcoming("0 0 */13 * 5", "UTC", "2026-02-01T00:00", 2) == ["02-27 00:00+0000", "03-27 00:00+0000"]
    assert len(set(upcoming("0 0 1-31 * 5", "UTC", "2026-02-01T00:00", 9))) == 9  # every day
    assert upcoming("0 0 31 2 1", "UTC", "2026-02-01T00:00", 1) == ["02-02 00:00+0000"]  # never, or a Monday


def test_rare_days_are_found() -> None:
    """A 29th of February on a Monday comes every 28 years, once after 40."""
    days = cron.parse("0 0 29 2 */7", "UTC").upcoming(at("2072-03-01"), 2)
    assert [datetime.fromtimestamp(day / 1000, UTC).isoformat()[:10] for day in days] == ["2088-02-29", "2128-02-29"]


def test_a_slot_is_after_the_instant_not_at_it() -> None:
    """So the last slot is a place to go on from."""
    schedule = cron.parse("*/5 * * * *")
    noon = at("2026-01-01T12:00")
    assert schedule.next_after(noon - 1) == noon
    assert schedule.next_after(noon) == schedule.next_after(noon + 1) == noon + 300_000
    assert schedule.slots_between(noon, noon + 600_000, 9) == [noon + 300_000, noon + 600_000]
    assert schedule.slots_between(noon, noon + 600_000, 1) == [noon + 300_000]
    assert schedule.latest(noon, noon + 601_000) == noon + 600_000
    assert schedule.latest(noon, noon + 299_999) is None
    assert schedule.latest(0, noon) == noon


# -- clocks that jump ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tz", "text", "after", "slots"),
    [
        ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00", ["03-29 03:00+0200", "03-30 02:30+0200"]),
        ("Europe/Berlin", "0,20,40 2 * * *", "2026-03-28T12:00", ["03-29 03:00+0200", "03-30 02:00+0200"]),
        ("Europe/Berlin", "0 2,3 * * *", "2026-03-28T12:00", ["03-29 03:00+0200", "03-30 02:00+0200"]),
        ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00", ["10-25 02:30+0200", "10-26 02:30+0100"]),
        ("America/New_York", "30 2 * * *", "2026-03-07T12:00", ["03-08 03:00-0400", "03-09 02:30-0400"]),
        ("America/New_York", "30 1 * * *", "2026-10-31T12:00", ["11-01 01:30-0400", "11-02 01:30-0500"]),
        # Half an hour: 02:00 → 02:30 and 02:00 → 01:30.
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00", ["10-04 02:30+1100", "10-05 02:15+1100"]),
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T12:00", ["04-05 01:45+1100", "04-06 01:45+1030"]),
        # There is no midnight on that day: 00:00 → 01:00.
        ("Asia/Beirut", "0 0 * * *", "2026-03-28T12:00", ["03-29 01:00+0300", "03-30 00:00+0300"]),
        ("Africa/Cairo", "30 0 * * *", "2026-04-23T12:00", ["04-24 01:00+0300", "04-25 00:30+0300"]),
        # 24:00 → 23:00: the last hour of the day comes twice.
        ("Africa/Cairo", "30 23 * * *", "2026-10-29T12:00", ["10-29 23:30+0300", "10-30 23:30+0200"]),
        # Two hours.
        ("Antarctica/Troll", "30 1 * * *", "2026-03-28T12:00", ["03-29 03:00+0200", "03-30 01:30+0200"]),
        # Greenland's clocks go forward on a Saturday evening.
        ("America/Nuuk", "30 23 * * *", "2026-03-28T12:00", ["03-29 00:00-0100", "03-29 23:30-0100"]),
        # A whole day was left out.
        (
            "Pacific/Apia",
            "0 12 * * *",
            "2011-12-29T00:00",
            ["12-29 12:00-1000", "12-31 00:00+1400", "12-31 12:00+1400"],
        ),
    ],
)
def test_a_fixed_time_is_due_once_on_each_day(tz: str, text: str, after: str, slots: list[str]) -> None:
    """At the first of two; when it is skipped, at the moment after the jump."""
    assert upcoming(text, tz, after, len(slots)) == slots


@pytest.mark.parametrize(
    ("tz", "text", "after", "slots"),
    [
        (
            *("Europe/Berlin", "*/30 * * * *", "2026-10-25T01:30"),
            ["10-25 02:00+0200", "10-25 02:30+0200", "10-25 02:00+0100", "10-25 02:30+0100", "10-25 03:00+0100"],
        ),
        ("Europe/Berlin", "0 * * * *", "2026-03-29T00:30", ["03-29 01:00+0100", "03-29 03:00+0200"]),
        ("Europe/Berlin", "*/30 2 * * *", "2026-03-28T12:00", ["03-30 02:00+0200", "03-30 02:30+0200"]),
        (
            *("Australia/Lord_Howe", "15 * * * *", "2026-04-05T00:30"),
            ["04-05 01:15+1100", "04-05 02:15+1030"],
        ),
        (
            *("Australia/Lord_Howe", "*/15 1 * * *", "2026-04-05T01:15"),
            ["04-05 01:30+1100", "04-05 01:45+1100", "04-05 01:30+1030", "04-05 01:45+1030"],
        ),
        ("Asia/Beirut", "*/30 * * * *", "2026-03-28T23:00", ["03-28 23:30+0200", "03-29 01:00+0300"]),
    ],
)
def test_a_star_follows_real_time(tz: str, text: str, after: str, slots: list[str]) -> None:
    """Repeated hours are due twice, skipped ones are not."""
    assert upcoming(text, tz, after, len(slots)) == slots


def test_asked_in_the_second_pass_a_fixed_time_is_not_due_again() -> None:
    """The answer depends on the instant, not on what the clock shows."""
    schedule = cron.parse("30 2 * * *", "Europe/Berlin")
    first = at("2026-10-25T02:30", "Europe/Berlin")
    second = at("2026-10-25T02:10", "Europe/Berlin", fold=1)
    assert schedule.next_after(second) == at("2026-10-26T02:30", "Europe/Berlin")
    assert schedule.next_after(first - 1) == first
    assert schedule.next_after(first) == at("2026-10-26T02:30", "Europe/Berlin")
