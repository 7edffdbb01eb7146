"""CPU time that the whole system takes while nothing is to do, and what freezing idle sandboxes would save and cost."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from runner import images
from runner.docker_driver import LABEL_INSTANCE
from tests.bench.load import median, timed_ms
from tests.platform import Platform

IDLE_S = 30.0
#: For refills and deploys that were under way.
SETTLE_S = 5.0


def cpu_of_idle_s(platform: Platform, redis_pid: int) -> dict[str, float]:
    """CPU seconds of each part over 30 idle seconds; ``sandboxes`` are all containers of the installation."""
    client = images.connect()
    time.sleep(SETTLE_S)
    try:
        containers = _containers(client, platform)
        before = _cpu_s(platform, redis_pid) | {"sandboxes": sum(map(_container_cpu_s, containers))}
        time.sleep(IDLE_S)
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
    return {part: sum(_tree_cpu_s(pid) for pid in pids) for part, pids in roots.items()}


def _tree_cpu_s(pid: int) -> float:
    """User and system time of a process and the processes below it."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_tree_cpu_s(int(child)) for child in children)
