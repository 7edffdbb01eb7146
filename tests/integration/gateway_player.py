"""Plays the runner for tests of the gateway: deploys, claims and settles by hand, and sends HTTP as clients do."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from threading import Event, Thread
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bananas import retry
from bananas.job import Attempt, Claim, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry, RunnerInfo
from bananas.spec import Bundles, Deployment, FunctionSpec
from tests.bells import rings

CODE = b"code"
SHA = hashlib.sha256(CODE).hexdigest()
ABI = "cp311-x86_64-glibc2.36"
LEASE_MS = 30_000
#: Waits for things that take milliseconds.
SOON_S = 20.0


class Player:
    """One runner's side of the queue."""

    def __init__(self, queue: Queue, registry: Registry) -> None:
        self.queue = queue
        self.registry = registry

    def deploy(self, name: str, **spec: Any) -> str:
        """Make a function exist; returns its version."""
        self.registry.put_bundle(SHA, CODE)
        deployment = Deployment(spec=FunctionSpec(**spec), bundles=Bundles(code=SHA), abi=ABI)
        return self.registry.deploy(name, deployment)[0].version

    def announce(self, *pools: str, **sandboxes: int) -> None:
        """Tell that a runner is live; without pools it serves all."""
        now_ms = self.registry.now_ms()
        counts = {key.replace("_", "/"): n for key, n in sandboxes.items()}
        self.registry.announce(
            RunnerInfo(
                id="player",
                host="here",
                pid=1,
                pools=pools,
                started_at_ms=now_ms,
                seen_at_ms=now_ms,
                busy=1,
                sandboxes=counts,
            )
        )

    def claim(self, pool: str = "default") -> Claim:
        """The next job of the pool, as soon as there is one."""
        deadline = time.monotonic() + SOON_S
        while time.monotonic() < deadline:
            if claims := self.queue.step("player", LEASE_MS, [], [(pool, 1)]).claims:
                return claims[0]
            rings(self.queue, pool, 1.0)
        raise AssertionError(f"no job came into pool {pool} within {SOON_S:g} s")

    def settle(
        self,
        claim: Claim,
        outcome: Outcome = Outcome.OK,
        result: bytes = b"null",
        error: dict[str, Any] | None = None,
        logs: bytes = b"",
    ) -> None:
        """Report the end of the attempt."""
        attempt = Attempt(
            claim.token,
            outcome,
            "player",
            0,
            start="warm",
            sandbox="box",
            nth_use=2,
            timings={"queued_ms": 0.5, "wait_sandbox_ms": 0.0, "init_ms": 0.0, "run_ms": 3.25, "total_ms": 4.0},
            error=error,
            log_bytes=len(logs),
        )
        decision = retry.decide(outcome, claim.retries, claim.failures, claim.starts, Random(0))
        settlement = Settlement(claim, attempt, decision, result if outcome is Outcome.OK else b"", logs)
        assert self.queue.step("player", LEASE_MS, [settlement], []).settled == [True]


@contextmanager
def playing(redis_url: str, end: Callable[[Player, Claim], None]) -> Iterator[None]:
    """A runner in a thread of its own, for the time of the block: ``end`` settles each job that it claims."""
    stop = Event()

    def play() -> None:
        connections = Connections(redis_url)
        player = Player(Queue(connections), Registry(connections))
        while not stop.is_set():
            player.announce()
            claims = player.queue.step("player", LEASE_MS, [], [("default", 8)]).claims
            for claim in claims:
                end(player, claim)
            if not claims:
                rings(player.queue, "default", 0.1)
        connections.close()

    thread = Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(SOON_S)
    assert not thread.is_alive()


@dataclass
class Answer:
    """What a gateway answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    #: Seconds until the whole answer was there.
    took_s: float

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def call(
    port: int, method: str, path: str, body: bytes | None = None, timeout_s: float = 30.0, **headers: str
) -> Answer:
    """One request on a connection of its own; a body is sent as JSON unless ``headers`` say otherwise."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        sent = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, body, {**sent, **{k.replace("_", "-"): v for k, v in headers.items()}})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read(), time.monotonic() - began)
    finally:
        connection.close()


def send(client: FlaskClient, method: str, path: str, body: Any = None) -> TestResponse:
    """One request; ``body`` is encoded unless it is bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.open(path, method=method, data=raw, content_type="application/json")


def assert_problem(answer: TestResponse, status: int, code: str, detail: str = "") -> dict[str, Any]:
    """Check a problem answer (``detail`` is a pattern) and return its body."""
    body = json.loads(answer.data)
    assert (answer.status_code, answer.mimetype) == (status, "application/problem+json"), answer.data
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:bananas:problem:{code}")
    assert body["title"]
    assert re.search(detail, body["detail"]), body["detail"]
    return body
