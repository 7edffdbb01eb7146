"""Synchronous calls and ``POST /jobs``: closed and open loops, payloads, a burst.

The floor that ratios are against is ``GET /healthz`` of the same gateway, which asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bananas.settings import LIMITS
from tests.bench.bench import NOOP, Bench, bound
from tests.bench.load import Sample, closed, opened, request
from tests.bench.table import Round, Row, interleaved
from tests.platform import Platform

_INVOKE: Final = "/functions/noop/invoke"
_CALL: Final = request("POST", _INVOKE, b"1")
#: A job that does not run meanwhile.
_LATER: Final = request("POST", "/jobs", b'{"name": "noop", "payload": 1, "delay": "1h"}')
_FLOOR: Final = request("GET", "/healthz")
_OPEN_CONNECTIONS: Final = 64


def calls(bench: Bench) -> list[Row]:
    """synchronous calls at 1 client, 1 client with 200 ms gaps, 8 and 32 clients"""
    rows = []
    n = bench.options.n(1000, 60)
    for clients in (1, 8, 32):
        rows += bench.rows(
            *("calls", "calls", f"synchronous call, warm, {_clients(clients)}"),
            _closed(_CALL, n * min(clients, 4), clients),
            {f"GET /healthz, {_clients(clients)}": _floor(bench, n, clients)},
            ratio_of="p50_ms" if clients == 1 else "per_s",
        )
        if clients == 1:
            rows += bench.rows(
                *("calls", "calls", "the same with 200 ms between calls"),
                _closed(_CALL, bench.options.n(30, 4), 1, 0.2),
                {"GET /healthz with 200 ms between calls": _floor(bench, bench.options.n(30, 4), 1, 0.2)},
            )
    return rows


def submit(bench: Bench) -> list[Row]:
    """POST /jobs at 1 and 10 clients"""
    rows = []
    n = bench.options.n(1500, 60)
    for clients in (1, 10):
        rows += bench.rows(
            *("submit", "calls", f"POST /jobs, {_clients(clients)}"),
            _closed(_LATER, n, clients),
            {f"GET /healthz, {_clients(clients)}": _floor(bench, n, clients)},
            ratio_of="p50_ms" if clients == 1 else "per_s",
        )
    return rows


def payloads(bench: Bench) -> list[Row]:
    """synchronous calls that take and give 100 B, 1 kB, 100 kB and the cap (1 MiB), at 1 client"""
    sizes = {"100 B": 100, "1 kB": 1000, "100 kB": 100_000, "1 MiB": LIMITS.payload_bytes}
    subjects: dict[str, Callable[[], Round]] = {}
    for side, platform in bench.sides.items():
        for name, size in sizes.items():
            call = request("POST", _INVOKE, b'"' + b"x" * (size - 2) + b'"')
            n = bench.options.n(100, 5) if size < 500_000 else bench.options.n(20, 2)
            label = f"synchronous call, {name} there and back" + (f" @{side}" if side else "")
            subjects[label] = bound(_closed(call, n, 1), platform)
    return interleaved("payloads", "calls", subjects, bench.options.rounds, next(iter(subjects)))


def open_loop(bench: Bench) -> list[Row]:
    """synchronous calls that begin by a clock, at 25, 50 and 75 % of what 8 clients get through"""
    seconds = bench.options.n(5, 1)
    rows = []
    capacity = closed(bench.ours.port, _CALL, bench.options.n(2000, 100), 8).per_s
    for percent in (25, 50, 75):
        rate = capacity * percent / 100
        rows += bench.rows(
            *("open-loop", "calls", f"open loop at {percent} % of {capacity:.0f}/s"),
            _opened(_CALL, rate, seconds),
            {f"GET /healthz in an open loop of {rate:.0f}/s": _open_floor(bench, rate, seconds)},
        )
    return rows


def burst(bench: Bench) -> list[Row]:
    """50 calls at once to a function that was never called"""
    at = iter(range(1000))

    def measure(platform: Platform) -> Sample:
        name = f"fresh{next(at)}"
        platform.deploy({name: NOOP})
        return closed(platform.port, request("POST", f"/functions/{name}/invoke", b"1"), 50, 50)

    return bench.rows(
        "burst", "calls", "burst of 50 calls to a function never called", measure, rounds=bench.options.n(3, 1)
    )


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


def _closed(call: bytes, calls: int, clients: int, gap_s: float = 0.0) -> Callable[[Platform], Sample]:
    return lambda platform: closed(platform.port, call, calls, clients, gap_s)


def _opened(call: bytes, rate_per_s: float, seconds: float) -> Callable[[Platform], Sample]:
    return lambda platform: opened(platform.port, call, rate_per_s, seconds, _OPEN_CONNECTIONS)


def _floor(bench: Bench, calls: int, clients: int, gap_s: float = 0.0) -> Callable[[], Sample]:
    return lambda: _closed(_FLOOR, calls, clients, gap_s)(bench.ours)


def _open_floor(bench: Bench, rate_per_s: float, seconds: float) -> Callable[[], Sample]:
    return lambda: _opened(_FLOOR, rate_per_s, seconds)(bench.ours)
