"""CPU time that the whole system takes while nothing is to do, and what freezing idle sandboxes would save and cost."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from runner import images
from runner.docker_driver import LABEL_INSTANCE
from tests.bench.bench import Bench
from tests.bench.load import median, timed_ms
from tests.bench.memory import tree
from tests.bench.table import Row
from tests.platform import Platform

#: For refills and deploys that were under way.
SETTLE_S = 5.0


def idle(bench: Bench) -> list[Row]:
    """CPU time while nothing is to do, and what freezing idle sandboxes would cost a call"""
    seconds = bench.options.n(30, 2)
    cpu_s = cpu_of_idle_s(bench.ours, bench.redis.pid or 0, seconds)
    count = round(cpu_s.pop("sandboxes_count"))
    rows = []
    for part, used_s in {**cpu_s, "all of them": sum(cpu_s.values())}.items():
        name = f"{part} ({count})" if part == "sandboxes" else part
        rows.append(Row("idle", f"CPU ms per idle second: {name}", p50_ms=used_s / seconds * 1000))
    frozen, thawed = freeze_and_thaw_ms(bench.ours)
    rows.append(Row("idle", "the engine's pause of a sandbox", p50_ms=frozen))
    rows.append(Row("idle", "its unpause", p50_ms=thawed))
    return rows


def cpu_of_idle_s(platform: Platform, redis_pid: int, seconds: float) -> dict[str, float]:
    """CPU seconds of each part over so many idle ones; ``sandboxes`` are all containers of the installation."""
    client = images.connect()
    time.sleep(SETTLE_S)
    try:
        containers = _containers(client, platform)
        before = _cpu_s(platform, redis_pid) | {"sandboxes": sum(map(_container_cpu_s, containers))}
        time.sleep(seconds)
        after = _cpu_s(platform, redis_pid) | {"sandboxes": sum(map(_container_cpu_s, containers))}
    finally:
        client.close()
    return {part: after[part] - before[part] for part in after} | {"sandboxes_count": float(len(containers))}


def freeze_and_thaw_ms(platform: Platform) -> tuple[float, float]:
    """Medians of the engine's pause and unpause of one idle sandbox."""
    client = images.connect()
    try:
        container = _containers(client, platform)[0]
        pauses, thaws = [], []
        for _ in range(9):
            pauses += timed_ms(container.pause, 1)
            thaws += timed_ms(container.unpause, 1)
    finally:
        client.close()
    return median(pauses), median(thaws)


def _containers(client: Any, platform: Platform) -> list[Any]:
    label = f"{LABEL_INSTANCE}={platform.registry.instance()}"
    return list(client.containers.list(filters={"label": label}))


def _container_cpu_s(container: Any) -> float:
    return float(container.stats(stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9


def _cpu_s(platform: Platform, redis_pid: int) -> dict[str, float]:
    roots = {"redis": [redis_pid]}
    for process in platform.processes:
        roots.setdefault(process.name.rstrip("0123456789"), []).append(process.popen.pid)
    return {part: sum(_cpu_of_s(below) for pid in pids for below in tree(pid)) for part, pids in roots.items()}


def _cpu_of_s(pid: int) -> float:
    """User and system time of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
