"""How cost grows: with sandboxes, runners, gateway processes and deployed functions. ``claims`` has the queue's depth,
``calls.payloads`` the payload.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from tests.bench.bench import NOOP, Bench, wait_warm
from tests.bench.drains import drained_per_s
from tests.bench.load import closed, request
from tests.bench.table import Round, Row, interleaved
from tests.platform import Platform

_SANDBOXES: Final = (1, 2, 4, 8, 16)
_JOB: Final = request("POST", "/jobs", b'{"name": "noop", "payload": 1, "delay": "1h"}')
_CALL: Final = request("POST", "/functions/noop/invoke", b"1")


def growth(bench: Bench) -> list[Row]:
    """drains by 1 to 16 sandboxes and by 1 and 2 runners; submits to 1 to 4 gateway processes; 200 functions"""
    return _sandboxes(bench) + _runners(bench) + _gateways(bench) + _functions(bench)


def _sandboxes(bench: Bench) -> list[Row]:
    jobs = bench.options.n(5000, 200)
    platform = bench.ours
    pools = "pools:\n" + "".join(f"  s{n}: {{concurrency: {n}, memory: 128M}}\n" for n in _SANDBOXES)
    for n in _SANDBOXES:
        platform.deploy({f"s{n}": NOOP}, f"    pool: s{n}\n    min_warm: {n}", pools)
    for n in _SANDBOXES:
        wait_warm(platform, f"s{n}", n)
    subjects: dict[str, Callable[[], Round]] = {
        f"drain of {jobs:,} queued jobs, {n} sandboxes": partial(drained_per_s, platform, f"s{n}", jobs)
        for n in _SANDBOXES
    }
    return interleaved("growth", "per_s", subjects, bench.options.n(3, 1), next(iter(subjects)))


def _runners(bench: Bench) -> list[Row]:
    jobs = bench.options.n(10_000, 200)
    subjects: dict[str, Callable[[], Round]] = {}
    for runners, each in ((1, 8), (2, 4)):
        platform = bench.platform()
        for _ in range(runners):
            platform.runner()
        platform.deploy({"noop": NOOP}, f"    pool: p\n    min_warm: {each}", f"pools:\n  p: {{concurrency: {each}}}")
        wait_warm(platform, "p", 8)
        label = f"drain of {jobs:,} queued jobs, {runners} runners with {each} sandboxes each"
        subjects[label] = partial(drained_per_s, platform, "noop", jobs)
    return interleaved("growth", "per_s", subjects, bench.options.n(3, 1), next(iter(subjects)))


def _gateways(bench: Bench) -> list[Row]:
    calls = bench.options.n(2000, 100)
    subjects: dict[str, Callable[[], Round]] = {}
    for processes in (1, 2, 4):
        platform = bench.platform(BANANAS_GATEWAY_WORKERS=str(processes))
        platform.runner()  # its jobs are not due, but a deploy wants to know its Python
        platform.deploy({"noop": NOOP})
        label = f"POST /jobs, 10 clients, {processes} gateway processes"
        subjects[label] = partial(closed, platform.port, _JOB, calls, 10)
    return interleaved("growth", "calls", subjects, bench.options.n(3, 1), next(iter(subjects)), "per_s")


def _functions(bench: Bench) -> list[Row]:
    calls = bench.options.n(1000, 50)
    many = bench.options.n(200, 5)
    platform = bench.platform()
    platform.runner()
    platform.deploy({"noop": NOOP, **{f"f{n}": NOOP for n in range(many - 1)}})
    sides: dict[str, Platform] = {"1 function": bench.ours, f"{many} functions": platform}
    subjects: dict[str, Callable[[], Round]] = {
        f"synchronous call, 1 client, {what} deployed": partial(closed, side.port, _CALL, calls, 1)
        for what, side in sides.items()
    }
    return interleaved("growth", "calls", subjects, bench.options.rounds, next(iter(subjects)))
