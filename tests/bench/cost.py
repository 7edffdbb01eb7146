"""CPU time of each part for one call, one submit and one drained job: what a busy neighbour disturbs least.

By the kernel's own accounting, in ms per job; that of sandboxes is of all their processes. The client is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.bench import Bench
from tests.bench.drains import drained_per_s, prepare
from tests.bench.load import closed, request
from tests.bench.memory import sandboxes, tree
from tests.bench.table import Round, Row, interleaved
from tests.platform import Platform

_CALL: Final = request("POST", "/functions/noop/invoke", b"1")
_LATER: Final = request("POST", "/jobs", b'{"name": "noop", "payload": 1, "delay": "1h"}')

_PARTS: Final = ("gateway", "runner", "redis", "sandboxes")
#: Parts that have nothing to do with a kind of work.
_IDLE: Final = {"POST /jobs": ("runner", "sandboxes"), "drained job": ("gateway",)}


def cpu(bench: Bench) -> list[Row]:
    """CPU time of each part for one call at 1 and 8 clients, one submit and one drained job"""
    calls, jobs = bench.options.n(1000, 50), bench.options.n(5000, 100)
    works: dict[str, tuple[int, Callable[[Platform], object]]] = {
        "synchronous call, 1 client": (calls, lambda platform: closed(platform.port, _CALL, calls, 1)),
        "synchronous call, 8 clients": (calls, lambda platform: closed(platform.port, _CALL, calls, 8)),
        "POST /jobs, 10 clients": (calls, lambda platform: closed(platform.port, _LATER, calls, 10)),
        "drained job, 10 sandboxes": (jobs, lambda platform: drained_per_s(platform, "ten", jobs)),
    }
    for platform in bench.sides.values():
        prepare(platform)
    rows = []
    for what, (number, work) in works.items():
        parts = [
            part
            for part in ("gateway", "runner", "redis", "sandboxes")
            if part not in _IDLE.get(what.split(",")[0], ())
        ]
        rows += _measured(bench, what, parts, number, work)
    return rows


def _measured(bench: Bench, what: str, parts: list[str], number: int, work: Callable[[Platform], object]) -> list[Row]:
    """The sides take turns; each piece of work gives a figure for every part."""
    rounds, names = bench.options.rounds, list(bench.sides)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            platform = bench.sides[name]
            before = _used_ms(bench, platform)
            work(platform)
            after = _used_ms(bench, platform)
            found[name].append({part: (after[part] - before[part]) / number for part in after})
    rows = []
    for part in parts:
        turns = {name: iter([figures[part] for figures in found[name]]) for name in names}
        label = f"{what}: CPU of {part}"
        subjects: dict[str, Callable[[], Round]] = {
            label + (f" @{name}" if name else ""): partial(next, turns[name]) for name in names
        }
        rows += interleaved("cpu", "ms", subjects, rounds, list(subjects)[-1] if len(subjects) > 1 else None)
    return rows


def _used_ms(bench: Bench, platform: Platform) -> dict[str, float]:
    """CPU time that each part has used so far."""
    used = {"redis": _run_ms(bench.redis.pid or 0), "gateway": 0.0, "runner": 0.0, "sandboxes": 0.0}
    for process in platform.processes:
        used[process.name.rstrip("0123456789")] += sum(map(_run_ms, tree(process.popen.pid)))
    # The work is done by warm ones, so none of them begins or ends meanwhile.
    used["sandboxes"] = sum(_run_ms(pid) for first in sandboxes(platform) for pid in tree(first))
    return used


def _run_ms(pid: int) -> float:
    """Of all threads of one process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text("utf-8").split()[0]) for thread in threads) / 1e6
