"""Memory of each part: gateway processes, runner, an idle sandbox."""

from __future__ import annotations

import os
from pathlib import Path

from runner import images
from runner.docker_driver import LABEL_INSTANCE
from tests.bench.bench import Bench
from tests.bench.table import Row
from tests.platform import Platform


def memory(bench: Bench) -> list[Row]:
    """memory of each gateway process, the runner and an idle sandbox"""
    rows = []
    for side, platform in bench.sides.items():
        tail = f" @{side}" if side else ""
        for process in platform.processes:
            name, workers = process.name.rstrip("0123456789"), children(process.popen.pid)
            if name == "gateway":
                rows.append(Row("memory", f"{name}, master{tail}", mb=rss_mb(process.popen.pid)))
                mb = max(rss_mb(worker) for worker in workers)
                rows.append(Row("memory", f"{name}, largest of {len(workers)} processes{tail}", mb=mb))
            else:
                rows.append(Row("memory", f"{name}{tail}", mb=rss_mb(process.popen.pid)))
        used = [sum(map(_own_mb, tree(pid))) for pid in sandboxes(platform)]
        rows.append(Row("memory", f"an idle sandbox, mean of {len(used)}{tail}", mb=sum(used) / len(used)))
    return rows


def rss_mb(pid: int) -> float:
    """Resident memory of one process in MiB; what it shares with others counts."""
    return _kib(Path(f"/proc/{pid}/status"), "VmRSS:") / 1024


def children(pid: int) -> list[int]:
    """Its child processes."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    return [pid, *(below for child in children(pid) for below in tree(child))]


def _own_mb(pid: int) -> float:
    """What is shared, in parts; only root may read that of other users' processes."""
    if os.geteuid() == 0:
        return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") / 1024
    return rss_mb(pid)


def _kib(file: Path, field: str) -> int:
    [kib] = [line.split()[1] for line in file.read_text("utf-8").splitlines() if line.startswith(field)]
    return int(kib)


def sandboxes(platform: Platform) -> list[int]:
    """The first process of each."""
    client = images.connect()
    try:
        label = f"{LABEL_INSTANCE}={platform.registry.instance()}"
        return [found.attrs["State"]["Pid"] for found in client.containers.list(filters={"label": label})]
    finally:
        client.close()
