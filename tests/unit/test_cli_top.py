"""``bananas top`` while the gateway does not answer, on a real terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

from tests.tools.stub_gateway import StubGateway, problem

Cli = Callable[..., SimpleNamespace]
METRICS = 'bananas_jobs_total{function="hello",outcome="ok"} 3.0\nbananas_dead_letters_kept 2.0\n'


def read_until(master: int, wanted: bytes, deadline_s: float = 30) -> bytes:
    """What the terminal shows, up to and with ``wanted``."""
    seen, ends_s = b"", time.monotonic() + deadline_s
    while wanted not in seen:
        assert time.monotonic() < ends_s, seen
        if select.select([master], [], [], 1)[0]:
            seen += os.read(master, 65536)
    return seen


def test_a_gateway_that_goes_away_is_told_above_the_last_frame(gateway: StubGateway) -> None:
    """The frame stays, and goes on by itself when the gateway is back."""
    gateway.override["GET /metrics"] = (200, METRICS.encode())
    gateway.pools["default"] = {"concurrency": 8}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BANANAS_")}
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bananas", "--url", gateway.url, "top", "--interval", "0.2"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=plain,
    )
    os.close(slave)
    try:
        assert b"2 dead" in read_until(master, b"RUNNER  ")
        gateway.override["GET /metrics"] = problem(503, "redis-unavailable", "Redis is away")
        seen = read_until(master, b"no answer since")
        frame = seen[seen.index(b"no answer since") :]
        while b"RUNNER  " not in frame:
            frame += read_until(master, b"RUNNER  ")
        assert b"2 dead" in frame
        gateway.override["GET /metrics"] = (200, METRICS.encode())
        read_until(master, b"Ctrl-C leaves")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(20)
        os.close(master)


def test_no_gateway_at_the_start_is_an_error(bananas: Cli, free_port: int) -> None:
    """Nothing is drawn."""
    done = bananas("--url", f"http://127.0.0.1:{free_port}", "top", "--once")
    assert (done.code, done.out) == (3, "")
