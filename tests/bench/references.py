"""Python's job queues, each in an environment of its own, on the same Redis as we, results on.

Configured as their documentation recommends for many short tasks, with as many processes as there are cores; what that
is, is in ``tests/bench/apps`` and in the commands below. None of them has a sandbox around a task.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis

from tests.bench.bench import CACHE, Bench
from tests.bench.table import Round
from tests.platform import ROOT

_INSTALL_S: Final = 600
_SUBMIT_S: Final = 120
_DRAIN_S: Final = 60.0
_STOP_S: Final = 10.0
_LOOK_S: Final = 0.005
_CORES: Final = str(len(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class Reference:
    """One queue: what to install, how to start its workers, and how to count the results that it has stored."""

    name: str
    packages: tuple[str, ...]
    #: A program of its environment and its arguments; ``{url}`` is the database.
    command: tuple[str, ...]
    #: Jobs in one drain: some seconds' worth, so that a slow one does not take minutes.
    jobs: int
    results: Callable[[Any], int]


def _keys(client: Any) -> int:
    return int(client.dbsize())


_APPS: Final = "tests.bench.apps.for_"
REFERENCES: Final = (
    Reference(
        "taskiq",
        ("taskiq>=0.12,<1", "taskiq-redis>=1.2,<2", "hiredis>=3.2"),
        ("taskiq", "worker", f"{_APPS}taskiq:broker", "--workers", _CORES, "--log-level", "WARNING"),
        10_000,
        _keys,
    ),
    Reference(
        "dramatiq",
        ("dramatiq[redis]>=2,<3", "hiredis>=3.2"),
        ("dramatiq", f"{_APPS}dramatiq", "--processes", _CORES, "--threads", "8"),
        20_000,
        _keys,
    ),
    Reference(
        "huey",
        ("huey>=3,<4", "redis>=7", "hiredis>=3.2"),
        ("huey_consumer", f"{_APPS}huey.huey", "-k", "process", "-w", _CORES, "-q"),
        20_000,
        lambda client: int(client.hlen("huey.results.bench")),
    ),
    Reference(
        "celery",
        ("celery[redis]>=5.5,<6", "hiredis>=3.2"),
        ("celery", "-A", f"{_APPS}celery", "worker", "--concurrency", _CORES, "--loglevel", "WARNING"),
        3000,
        _keys,
    ),
    Reference(
        "rq",
        ("rq>=2,<4", "hiredis>=3.2"),
        ("rq", "worker-pool", "-n", _CORES, "--logging-level", "WARNING", "--url", "{url}"),
        300,
        lambda client: int(client.zcard("rq:finished:default")),
    ),
)


def prepared(bench: Bench) -> dict[str, Callable[[], Round]]:
    """Every reference, installed, by the label of its row: a drain, in jobs per second."""
    subjects: dict[str, Callable[[], Round]] = {}
    for at, reference in enumerate(REFERENCES):
        folder = install(reference)
        url = bench.database(10 + at)
        label = f"{reference.name}: drain of {reference.jobs:,} queued tasks, no sandbox"
        subjects[label] = partial(drained_per_s, reference, folder, url)
    return subjects


def install(reference: Reference) -> Path:
    """Its environment, made once; pip takes its index from its own configuration."""
    folder = CACHE / "references" / reference.name
    stamp = folder / "installed"
    wanted = "\n".join((sys.version, *reference.packages))
    if not stamp.exists() or stamp.read_text("utf-8") != wanted:
        print(f"installing {reference.name} into {folder.relative_to(ROOT)}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=_INSTALL_S)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *reference.packages], check=True, timeout=_INSTALL_S)
        stamp.write_text(wanted, "utf-8")
    return folder


def drained_per_s(reference: Reference, folder: Path, url: str) -> float:
    """Tasks per second from the first stored result to the last one; workers start with everything queued."""
    environ = {**os.environ, "BENCH_URL": url, "PYTHONPATH": str(ROOT)}
    with redis.Redis.from_url(url, socket_timeout=10) as client:
        client.flushdb()
        submit = f"from {_APPS}{reference.name} import submit; submit({reference.jobs})"
        subprocess.run([str(folder / "bin/python"), "-c", submit], env=environ, cwd=ROOT, check=True, timeout=_SUBMIT_S)
        before = reference.results(client)
        command = [word.format(url=url) for word in reference.command]
        with (folder / "worker.log").open("wb") as log:
            workers = subprocess.Popen(
                [str(folder / "bin" / command[0]), *command[1:]],
                env=environ,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            rate = _rate(lambda: reference.results(client) - before, reference.jobs)
        finally:
            _stop(workers)
        client.flushdb()
    if not rate:
        log_tail = (folder / "worker.log").read_text("utf-8", "replace")[-2000:]
        raise SystemExit(f"{reference.name} did nothing within {_DRAIN_S:g} s:\n{log_tail}")
    return rate


def _rate(count: Callable[[], int], jobs: int) -> float:
    """From the first to the last of ``jobs``, or to what there is when the time is over; 0.0 when there is nothing."""
    deadline_s = time.perf_counter() + _DRAIN_S
    first_s, first, last_s, last = 0.0, 0, 0.0, 0
    # Workers add keys of their own and take some away, so the very last few cannot be told from those.
    while last < jobs - 10 and time.perf_counter() < deadline_s:
        done, now_s = count(), time.perf_counter()
        if done > last:
            last_s, last = now_s, done
            if not first:
                first_s, first = now_s, done
        time.sleep(_LOOK_S)
    return (last - first) / (last_s - first_s) if last > first else 0.0


def _stop(workers: subprocess.Popen[bytes]) -> None:
    """The whole process group, which is the reference's own."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(workers.pid, sent)
            workers.wait(_STOP_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
