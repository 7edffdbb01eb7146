"""Load over HTTP from one thread and one epoll, so that the client takes little of the machine that it measures.

``closed``: so many clients, each waiting for its answer. ``opened``: calls begin when a clock says so, whether the ones
before are answered or not, and a latency counts from the moment at which the call was due: a server that falls
behind cannot hide it. Loopback only; everything ends by itself at a deadline.
"""

from __future__ import annotations

import heapq
import math
import select
import socket
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

#: No measurement takes longer.
DEADLINE_S = 180.0
_CHUNK_BYTES = 256 * 1024


@dataclass(slots=True)
class Sample:
    """Latencies in ms of the calls of one measurement, its wall time in s, and how many got which HTTP status."""

    latencies_ms: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def per_s(self) -> float:
        """Calls per second."""
        return len(self.latencies_ms) / self.wall_s if self.wall_s else 0.0

    @property
    def errors(self) -> int:
        """Calls that were not answered with 2xx."""
        return sum(count for status, count in self.statuses.items() if not 200 <= status < 300)

    def percentile(self, percent: float) -> float:
        """In ms, by nearest rank."""
        return percentile(self.latencies_ms, percent)


def percentile(values: list[float], percent: float) -> float:
    """By nearest rank.

    >>> [percentile([4.0, 1.0, 3.0, 2.0], p) for p in (1, 50, 51, 99.9)]
    [1.0, 2.0, 3.0, 4.0]
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """One HTTP request as it goes over the wire, on a connection that is kept."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Connection:
    """One keep-alive connection with at most one request on it."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 30)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.since_s = 0.0
        self._unsent = memoryview(b"")
        self._got = bytearray()
        self._needed = 0

    def begin(self, request: bytes, since_s: float) -> bool:
        """Send a request; its latency counts from ``since_s``. True when some of it is still to be sent."""
        self.since_s, self._unsent, self._needed = since_s, memoryview(request), 0
        return self.send()

    def send(self) -> bool:
        """Send more; True while some is left."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return True
        return False

    def receive(self) -> int:
        """Read more; the HTTP status once the answer is complete, else 0."""
        part = self.sock.recv(_CHUNK_BYTES)
        if not part:
            raise ConnectionError(f"the server closed a connection after {bytes(self._got[:200])!r}")
        self._got += part
        if not self._needed:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return 0
            head = bytes(self._got[:end]).lower()
            _, found, rest = head.partition(b"content-length:")
            if not found:
                raise ConnectionError(f"an answer without Content-Length: {head!r}")
            self._needed = end + 4 + int(rest.split(b"\r\n", 1)[0])
        if len(self._got) < self._needed:
            return 0
        status = int(self._got[9:12])
        del self._got[: self._needed]
        return status


class _Loop:
    """Connections, an epoll, and what has been measured."""

    def __init__(self, port: int, connections: int, deadline_s: float) -> None:
        self.sample = Sample()
        self._poll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}
        self._deadline_s = time.perf_counter() + deadline_s
        for _ in range(connections):
            connection = _Connection(port)
            self._by_fd[connection.sock.fileno()] = connection
            self._poll.register(connection.sock, select.EPOLLIN)

    @property
    def connections(self) -> list[_Connection]:
        """All of them."""
        return list(self._by_fd.values())

    def begin(self, connection: _Connection, request: bytes, since_s: float) -> None:
        """Start a call on an idle connection."""
        if connection.begin(request, since_s):
            self._poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)

    def answered(self, until_s: float) -> Iterator[_Connection]:
        """Connections whose answers came, once there is something or the moment ``until_s`` is there."""
        now_s = time.perf_counter()
        if now_s > self._deadline_s:
            raise TimeoutError(f"the measurement took too long; answered so far: {len(self.sample.latencies_ms)}")
        # select, since epoll's own timeout is in whole ms.
        left_s = min(until_s, self._deadline_s) - now_s
        if left_s > 0:
            select.select([self._poll.fileno()], [], [], left_s)
        for fd, event in self._poll.poll(0):
            connection = self._by_fd[fd]
            if event & select.EPOLLOUT and not connection.send():
                self._poll.modify(fd, select.EPOLLIN)
            if event & ~select.EPOLLOUT and (status := connection.receive()):
                self.sample.latencies_ms.append((time.perf_counter() - connection.since_s) * 1000)
                self.sample.statuses[status] += 1
                yield connection

    def close(self) -> None:
        """Close everything."""
        for connection in self._by_fd.values():
            connection.sock.close()
        self._poll.close()


def closed(
    port: int,
    request: bytes,
    calls: int,
    clients: int,
    gap_s: float = 0.0,
    deadline_s: float = DEADLINE_S,
    on_begun: Callable[[], None] = lambda: None,
) -> Sample:
    """``calls`` in all over ``clients`` connections, each beginning its next call ``gap_s`` after an answer.

    ``on_begun`` is called once, when every client has begun its first call.
    """
    loop = _Loop(port, min(clients, calls), deadline_s)
    pauses: list[tuple[float, int, _Connection]] = []
    left = calls
    try:
        began_s = time.perf_counter()
        for connection in loop.connections:
            left -= 1
            loop.begin(connection, request, time.perf_counter())
        on_begun()
        while len(loop.sample.latencies_ms) < calls:
            for connection in loop.answered(pauses[0][0] if pauses else math.inf):
                if left <= 0:
                    continue
                left -= 1
                if gap_s:
                    heapq.heappush(pauses, (time.perf_counter() + gap_s, left, connection))
                else:
                    loop.begin(connection, request, time.perf_counter())
            while pauses and pauses[0][0] <= time.perf_counter():
                loop.begin(heapq.heappop(pauses)[2], request, time.perf_counter())
        loop.sample.wall_s = time.perf_counter() - began_s
    finally:
        loop.close()
    return loop.sample


def opened(port: int, request: bytes, rate_per_s: float, seconds: float, connections: int, seed: int = 1) -> Sample:
    """Calls at random moments (Poisson), ``rate_per_s`` on average, over at most so many connections."""
    rng = Random(seed)
    loop = _Loop(port, connections, DEADLINE_S)
    idle, late = deque(loop.connections), deque[float]()
    try:
        began_s = time.perf_counter()
        next_s, end_s = began_s + rng.expovariate(rate_per_s), began_s + seconds
        while next_s < end_s or late or len(idle) < connections:
            idle.extend(loop.answered(next_s if next_s < end_s else math.inf))
            now_s = time.perf_counter()
            while next_s <= now_s and next_s < end_s:
                late.append(next_s)
                next_s += rng.expovariate(rate_per_s)
            while late and idle:
                loop.begin(idle.popleft(), request, late.popleft())
        loop.sample.wall_s = time.perf_counter() - began_s
    finally:
        loop.close()
    return loop.sample


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
