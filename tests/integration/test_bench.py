"""The benchmark: real calls are measured, subjects take turns, and a slow server cannot hide behind its clients."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench import load, table
from tests.platform import ROOT


@contextmanager
def server(answers: int, pause_s: float = 0.0) -> Iterator[int]:
    """A port whose first connection gets so many answers, in two pieces each, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                for _ in range(answers):
                    sock.recv(65536)
                    time.sleep(pause_s)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
                    sock.sendall(b"ngth: 3\r\n\r\nabc")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


def test_a_closed_loop_makes_exactly_the_calls_that_it_was_asked_for() -> None:
    """Each answer is taken off the connection whole, however it arrives."""
    with server(20) as port:
        sample = load.closed(port, load.request("GET", "/"), 20, 1)
    assert (len(sample.latencies_ms), dict(sample.statuses), sample.errors) == (20, {200: 20}, 0)


def test_an_open_loop_counts_from_the_moment_at_which_a_call_was_due() -> None:
    """A server that needs 10 ms for a call and gets 300 in a second is told to be slow, not to be loaded less."""
    answers = sum(1 for _ in due_times(300, 0.2))
    with server(answers, pause_s=0.01) as port:
        sample = load.opened(port, load.request("GET", "/"), 300, 0.2, 1)
    assert len(sample.latencies_ms) == answers
    # The last call was due within 0.2 s and answered after all the others.
    assert max(sample.latencies_ms) > answers * 10 - 200


def due_times(rate_per_s: float, seconds: float) -> Iterator[float]:
    """When ``opened`` begins its calls."""
    rng = load.Random(1)
    at_s = rng.expovariate(rate_per_s)
    while at_s < seconds:
        yield at_s
        at_s += rng.expovariate(rate_per_s)


def test_subjects_take_turns_and_ratios_are_of_one_round() -> None:
    """What a noisy machine does to one round, it does to both sides of a ratio."""
    order: list[str] = []

    def subject(name: str, factor: float) -> load.Callable[[], float]:
        def measure() -> float:
            order.append(name)
            return factor * (1 + len(order) // 2)

        return measure

    rows = table.interleaved("s", "per_s", {"a": subject("a", 2.0), "b": subject("b", 6.0)}, 3, "a")
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [row.reference for row in rows] == ["", "a"]
    assert len(rows[1].ratios) == 3
    assert rows[1].ratio == sorted(rows[1].ratios)[1]


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    """Nothing is started for a typing error."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "cals"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "no scenario 'cals'; known are calls, open-loop" in done.stderr


@pytest.mark.usefixtures("base_image")
def test_a_quick_run_measures_real_calls(tmp_path: Path) -> None:
    """One small scenario from start to end: a platform of its own, a table, JSON, no call failed."""
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--json", str(report), "submit"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(report.read_text("utf-8"))
    assert said["before"]["cores"] >= 1
    rows = {row["what"]: row for row in said["rows"]}
    assert rows["POST /jobs, 10 clients"]["reference"] == "GET /healthz, 10 clients"
    assert rows["POST /jobs, 10 clients"]["ratio"] > 0
    assert {(row["n"], row["errors"]) for row in rows.values()} == {(60, 0)}
    assert "POST /jobs, 1 client" in done.stdout
