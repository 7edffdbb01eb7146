"""A small closed-loop HTTP load driver on the standard library, bounded in count, for loopback only."""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """Latencies in ms of the calls of one measurement, and its wall time in s."""

    latencies_ms: list[float]
    wall_s: float
    errors: int

    @property
    def per_s(self) -> float:
        """Calls per second."""
        return len(self.latencies_ms) / self.wall_s

    def percentile(self, percent: float) -> float:
        """In ms, by nearest rank."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def http_load(port: int, method: str, path: str, body: bytes, calls: int, clients: int, gap_s: float = 0.0) -> Sample:
    """``calls`` requests in all over ``clients`` keep-alive connections to 127.0.0.1, each waiting for its answer."""
    latencies: list[float] = []
    errors = [0]
    lock = threading.Lock()

    def client(count: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        mine, failed = [], 0
        for _ in range(count):
            began = time.perf_counter()
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            mine.append((time.perf_counter() - began) * 1000)
            failed += answer.status >= 400
            if gap_s:
                time.sleep(gap_s)
        connection.close()
        with lock:
            latencies.extend(mine)
            errors[0] += failed

    threads = [threading.Thread(target=client, args=(calls // clients,)) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Sample(latencies, time.perf_counter() - began, errors[0])


def timed_ms(action: Callable[[], object], times: int) -> list[float]:
    """How long each of ``times`` runs took."""
    out = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        out.append((time.perf_counter() - began) * 1000)
    return out


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)
