"""``bananas top``: pools, functions and runners at a glance, with rates, drawn again every second.

A frame is made of two samples of what the gateway tells, and is pure from there on. On a terminal the frames are drawn
over each other until Ctrl-C; elsewhere, and with --once, one frame is printed.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from bananas.cli.output import ago, cell, client, output_option, print_json, table_lines
from bananas.errors import BananasError

if TYPE_CHECKING:
    from bananas.client import Client

#: name, then labels and their values; as in Prometheus text.
Series = tuple[str, tuple[tuple[str, str], ...]]

_LINE: Final = re.compile(r"(\w+)(?:\{(.*)\})? ([^ ]+)")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
_NAMES: Final = frozenset(
    {
        "bananas_jobs_total",
        "bananas_jobs_accepted_total",
        "bananas_job_duration_seconds_sum",
        "bananas_job_duration_seconds_count",
        "bananas_queue_oldest_seconds",
        "bananas_scheduled_jobs",
        "bananas_dead_letters_kept",
    }
)
# The other screen without a cursor, and back; the frame's first line; the rest of a line; the rest of the screen.
_ENTER, _LEAVE, _HOME, _REST, _BELOW = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[K", "\x1b[J"


@dataclass(frozen=True, slots=True)
class Sample:
    """What the gateway told at one moment."""

    #: Monotonic.
    at_s: float
    pools: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    runners: list[dict[str, Any]]
    series: Mapping[Series, float]


@click.command("top")
@click.option("--once", is_flag=True, help="Print one frame and leave, as when the output is no terminal.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between frames.",
)
@output_option
def top(once: bool, interval: float, output: str) -> int:
    """Watch pools, functions and runners, live.

    Rates are those of the last interval: jobs accepted, attempts ended well and
    otherwise, and how long handlers ran. QUEUED counts high, normal and low
    priority, OLDEST is how long the next job has waited. Ctrl-C leaves.

    \b
    Example:
      bananas top
      bananas top --once -o json | jq .pools
    """
    with client() as gateway:
        before = take(gateway)
        if once or output == "json" or not sys.stdout.isatty():
            time.sleep(interval)  # a rate is what happens in a time
            told = frame(before, take(gateway))
            if output == "json":
                print_json(told)
            else:
                for line in lines(gateway.url, told):
                    click.echo(line)
            return 0
        return _watch(gateway, before, interval)


def _watch(gateway: Client, before: Sample, interval_s: float) -> int:
    """Draw until Ctrl-C. While the gateway does not answer, that is told above the last frame."""
    note = ""
    told = frame(before, before)
    sys.stdout.write(_ENTER)
    try:
        while True:
            size = shutil.get_terminal_size()
            text = [
                note or f"bananas top, {gateway.url}, Ctrl-C leaves",
                *list(lines(gateway.url, told, size.columns))[1:],
            ]
            shown = [line[: size.columns] + _REST for line in text[: size.lines - 1]]
            sys.stdout.write(_HOME + "\r\n".join(shown) + _BELOW)
            sys.stdout.flush()
            time.sleep(interval_s)
            try:
                now = take(gateway)
                told, before, note = frame(before, now), now, ""
            except BananasError as e:
                note = f"no answer since {time.monotonic() - before.at_s:.0f} s: {cell(e)}"
    except KeyboardInterrupt:
        return 0
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def take(gateway: Client) -> Sample:
    """Ask the gateway; raises what its client raises."""
    series = read_series(gateway.metrics())
    at_s = time.monotonic()
    return Sample(at_s, gateway.pools(), gateway.functions(), gateway.runners(), series)


def read_series(text: str) -> dict[Series, float]:
    """The series of Prometheus text that a frame is made of.

    >>> read_series('bananas_jobs_total{function="hello",outcome="ok"} 3.0')
    {('bananas_jobs_total', (('function', 'hello'), ('outcome', 'ok'))): 3.0}
    """
    found: dict[Series, float] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match and match[1] in _NAMES:
            found[match[1], tuple(_LABEL.findall(match[2] or ""))] = float(match[3])
    return found


def frame(before: Sample, now: Sample) -> dict[str, Any]:
    """What is shown, as ``-o json`` prints it; a rate is None when no time lies between the samples."""
    past_s = now.at_s - before.at_s

    def grown(name: str, **labels: str) -> float:
        total = 0.0
        for (what, having), value in now.series.items():
            if what == name and labels.items() <= dict(having).items():
                total += max(0.0, value - before.series.get((what, having), 0.0))
        return total

    def rate(number: float) -> float | None:
        return round(number / past_s, 2) if past_s > 0 else None

    functions = []
    for function in now.functions:
        name = function["name"]
        ended, ok = grown("bananas_jobs_total", function=name), grown("bananas_jobs_total", function=name, outcome="ok")
        runs = grown("bananas_job_duration_seconds_count", function=name)
        run_s = grown("bananas_job_duration_seconds_sum", function=name)
        functions.append(
            {
                "name": name,
                "pool": function["spec"].get("pool"),
                "running": function["running"],
                "parked": function["parked"],
                "accepted_per_s": rate(grown("bananas_jobs_accepted_total", function=name)),
                "ok_per_s": rate(ok),
                "not_ok_per_s": rate(ended - ok),
                "run_ms": round(run_s / runs * 1000, 2) if runs else None,
            }
        )
    return {
        "queued": sum(sum(pool["queued"].values()) for pool in now.pools),
        "running": sum(runner["busy"] for runner in now.runners),
        "scheduled": int(now.series.get(("bananas_scheduled_jobs", ()), 0)),
        "dead": int(now.series.get(("bananas_dead_letters_kept", ()), 0)),
        "ended_per_s": rate(grown("bananas_jobs_total")),
        "pools": [_pool(pool, now) for pool in now.pools],
        # The busiest first, then by name.
        "functions": sorted(functions, key=lambda f: (-(f["ok_per_s"] or 0) - (f["not_ok_per_s"] or 0), f["name"])),
        "runners": [_runner(runner) for runner in now.runners],
    }


def _pool(pool: dict[str, Any], now: Sample) -> dict[str, Any]:
    ages = [
        value
        for (name, labels), value in now.series.items()
        if name == "bananas_queue_oldest_seconds" and ("pool", pool["name"]) in labels
    ]
    facts = ("name", "queued", "processing", "runners", "waits_for_runner")
    slots = (pool["spec"].get("concurrency") or 0) * pool["runners"]
    return {name: pool[name] for name in facts} | {"oldest_s": max(ages, default=0.0), "slots": slots}


def _runner(runner: dict[str, Any]) -> dict[str, Any]:
    states: dict[str, int] = defaultdict(int)
    for where, count in runner["sandboxes"].items():
        states[where.rpartition("/")[2]] += count
    facts = ("id", "host", "pools", "busy", "seen_at")
    return {name: runner[name] for name in facts} | {"sandboxes": dict(states)}


def lines(url: str, told: dict[str, Any], width: int = 80) -> Iterator[str]:
    """A frame as text of at most ``width`` columns, 80 at least."""
    width = max(80, width)
    yield f"bananas top, {url}"
    ended = "-" if told["ended_per_s"] is None else f"{told['ended_per_s']:.1f}/s"
    counts = ", ".join(f"{told[name]} {name}" for name in ("queued", "running", "scheduled", "dead"))
    yield f"{counts}, {ended} ended"
    yield ""
    headings: tuple[str, ...] = ("POOL", "QUEUED H/N/L", "OLDEST", "RUNNING", "SLOTS", "RUNNERS", "")
    yield from table_lines(headings, map(_pool_row, told["pools"]), width)
    yield ""
    headings = ("FUNCTION", "POOL", "RUNNING", "PARKED", "IN/S", "OK/S", "NOT OK/S", "RUN MS")
    yield from table_lines(headings, map(_function_row, told["functions"]), width)
    yield ""
    headings = ("RUNNER", "HOST", "POOLS", "BUSY", "SANDBOXES", "SEEN")
    yield from table_lines(headings, map(_runner_row, told["runners"]), width)


def _pool_row(pool: dict[str, Any]) -> tuple[object, ...]:
    lanes = "/".join(str(pool["queued"].get(priority, 0)) for priority in ("high", "normal", "low"))
    note = "no runner!" if pool["waits_for_runner"] else " "
    facts = (pool["processing"], pool["slots"], pool["runners"], note)
    return (pool["name"], lanes, f"{pool['oldest_s']:.1f}s", *facts)


def _function_row(function: dict[str, Any]) -> tuple[object, ...]:
    return tuple(
        function[name]
        for name in ("name", "pool", "running", "parked", "accepted_per_s", "ok_per_s", "not_ok_per_s", "run_ms")
    )


def _runner_row(runner: dict[str, Any]) -> tuple[object, ...]:
    states = " ".join(f"{count} {state}" for state, count in sorted(runner["sandboxes"].items()))
    pools = ",".join(runner["pools"]) or "all"
    return (runner["id"], runner["host"], pools, runner["busy"], states, ago(runner["seen_at"]))
