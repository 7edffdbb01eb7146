"""``/metrics`` of one runner, where ``BANANAS_RUNNER_METRICS`` names an address for it: what this process knows.

It answers that one path and nothing else, asks nobody and changes nothing. Gateways tell of the whole installation;
this adds what only a runner sees: its engine, its loop, its own share. Names are in ``bananas.metrics``.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer
from prometheus_client import ProcessCollector

from bananas import __version__, events, logs, metrics
from bananas.errors import ConfigError, RedisUnavailable
from runner.enginewatch import EngineWatch
from runner.gate import Gate
from runner.gpus import Gpus
from runner.heartbeat import InFlight
from runner.ledger import Ledger
from runner.pool import SandboxPool
from runner.service import GreenletService
from runner.tally import Tally

#: Scrapes at a time, and how long a client may take to ask or to read.
_CLIENTS: Final = 16
_CLIENT_S: Final = 10.0
_MIB: Final = 1024 * 1024


@dataclass(slots=True)
class Vitals:
    """What the runner found out about Redis and its own loop; None: not yet."""

    is_redis_up: bool | None = None
    redis_s: float | None = None
    loop_lag_s: float | None = None

    def lagged(self, lag_s: float) -> None:
        """The last heartbeat began so late."""
        self.loop_lag_s = lag_s

    @contextmanager
    def redis(self) -> Iterator[None]:
        """For the time of one question to Redis."""
        began_s = time.monotonic()
        try:
            yield
        except RedisUnavailable:
            self.is_redis_up = False
            raise
        self.is_redis_up, self.redis_s = True, time.monotonic() - began_s


@dataclass(frozen=True, slots=True)
class Sources:
    """What the exposition is read from."""

    runner: str
    pools: Mapping[str, SandboxPool]
    in_flight: InFlight
    tally: Tally
    ledger: Ledger
    gate: Gate
    gpus: Gpus
    vitals: Vitals
    engine: EngineWatch


def text(sources: Sources) -> bytes:
    """Prometheus text of this moment."""
    told = metrics.Exposition(metrics.RUNNER)
    told.count(sources.tally.totals() + Counter({f"event:{name}": number for name, number in logs.told.items()}))
    told.set("bananas_runner_build_info", 1, __version__, sources.runner)
    told.set("bananas_runner_attempts_in_flight", len(sources.in_flight))
    told.set("bananas_runner_sandbox_memory_bytes", sources.ledger.used_mb * _MIB)
    told.set("bananas_runner_sandbox_memory_budget_bytes", sources.ledger.budget_mb * _MIB)
    told.set("bananas_runner_creates_in_progress", sources.gate.taken)
    told.set("bananas_runner_gpus", len(sources.gpus.devices))
    for name, pool in list(sources.pools.items()):
        told.set("bananas_runner_slots", pool.spec.concurrency, name)
        for state, number in pool.states().items():
            told.set("bananas_runner_sandboxes", number, name, state)
    told.set("bananas_runner_engine_up", float(sources.engine.answers))
    vitals = sources.vitals
    for name, value in (
        ("redis_up", vitals.is_redis_up),
        ("redis_round_trip_seconds", vitals.redis_s),
        ("engine_round_trip_seconds", sources.engine.ping_s),
        ("loop_lag_seconds", vitals.loop_lag_s),
    ):
        if value is not None:
            told.set(f"bananas_runner_{name}", float(value))
    return told.text(ProcessCollector(registry=None))


def listen(address: tuple[str, int] | None) -> socket.socket | None:
    """A socket for the server at host and port, None without one; raises ConfigError."""
    if address is None:
        return None
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=_CLIENTS)
    except OSError as e:
        raise ConfigError(
            f"BANANAS_RUNNER_METRICS={host}:{port} cannot be listened at: {e.strerror or e}; each runner on a machine "
            "needs an address of its own, such as 127.0.0.1:9465"
        ) from e


class MetricsServer(GreenletService):
    """Answers scrapes until the runner ends."""

    name = "metrics"

    def __init__(
        self, on_crash: Callable[[str, BaseException], None], listener: socket.socket, tell: Callable[[], bytes]
    ) -> None:
        """``tell`` gives the exposition of the moment."""
        super().__init__(on_crash)
        self._listener = listener
        self._tell = tell

    def run(self) -> None:
        """Serve until stopped."""
        server = WSGIServer(
            self._listener,
            self._answer,
            spawn=Pool(_CLIENTS),
            log=None,
            error_log=logs.library("pywsgi"),
            handler_class=_Handler,
        )
        server.start()
        self.stopping.wait()
        server.stop(timeout=1)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        status, kind, body = "404 Not Found", "text/plain; charset=utf-8", b"only GET /metrics is served here\n"
        if environ["PATH_INFO"] == "/metrics" and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            status, kind, body = "200 OK", metrics.CONTENT_TYPE, self._tell()
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body] if environ["REQUEST_METHOD"] != "HEAD" else []


class _Handler(WSGIHandler):
    """A connection whose client must not dawdle."""

    def handle(self) -> None:
        """Until it is closed, or its client takes too long."""
        self.socket.settimeout(_CLIENT_S)
        try:
            super().handle()
        except TimeoutError as e:
            events.METRICS_SLOW_CLIENT(error=e)
