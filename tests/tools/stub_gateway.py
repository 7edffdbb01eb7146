"""A gateway that speaks docs/http-api.md over real HTTP and keeps everything in memory: no Redis, no runner.

For tests of the client, of deploys and of the command line, where the subject is what is asked and how answers are
told. Whether the real gateway answers like this is the matter of the end-to-end tests.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import msgspec

from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec

ABI = "cp311-x86_64-glibc2.36"
RUNTIME = {
    "image": "bananas/python",
    "image_id": "sha256:1",
    "python": "3.11",
    "machine": "x86_64",
    "libc": "glibc2.36",
}
DAY = "2026-11-24T06:00:00.000Z"

#: Status, body (bytes as they are, else JSON).
Answer = tuple[int, Any]


def problem(status: int, code: str, detail: str, **facts: Any) -> Answer:
    """An RFC 9457 body."""
    return status, {"type": f"urn:bananas:problem:{code}", "status": status, "detail": detail, "code": code, **facts}


@dataclass
class StubGateway:
    """Its state, which tests look at and set up."""

    runtimes: dict[str, Any] = field(default_factory=lambda: {"python": {**RUNTIME, "abi": ABI}})
    functions: dict[str, Any] = field(default_factory=dict)
    pools: dict[str, Any] = field(default_factory=dict)
    bundles: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, Any] = field(default_factory=dict)
    runners: list[Any] = field(default_factory=list)
    schedules: list[Any] = field(default_factory=list)
    #: Pools in which jobs wait for a runner.
    unserved: set[str] = field(default_factory=set)
    #: Dead letters, oldest first; two of them make a page.
    letters: list[Any] = field(default_factory=list)
    #: ``METHOD /path?query`` of every request, in order, and the bodies that were sent.
    calls: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    #: ``METHOD /path`` → what to answer instead.
    override: dict[str, Answer] = field(default_factory=dict)
    #: For the next requests, one each: "lost" does what is asked and hangs up; an answer and its headers come instead.
    faults: deque[Literal["lost"] | tuple[int, Any, dict[str, str]]] = field(default_factory=deque)
    #: The headers of every request, in order.
    headers: list[Mapping[str, str]] = field(default_factory=list)
    url: str = ""

    def record(self, job_id: str, **changed: Any) -> None:
        """Put a job there: completed, unless told otherwise."""
        base = {"id": job_id, "name": "hello", "version": "103c89f0cdda", "pool": "default", "priority": "normal"}
        base |= {"status": "completed", "created_at": DAY, "scheduled_for": None, "started_at": DAY, "finished_at": DAY}
        base |= {
            "attempts": 1,
            "max_retries": 3,
            "timeout_ms": 30000,
            "reason": None,
            "result": {"n": 1},
            "error": None,
            "waiting_for": None,
            "waiting_detail": None,
            "progress": None,
        }
        self.jobs[job_id] = base | {"history": []} | changed

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """What the gateway says."""
        bare = path.split("?")[0]
        if f"{method} {bare}" in self.override:
            return self.override[f"{method} {bare}"]
        for pattern, handler in self._routes():
            if match := re.fullmatch(pattern, f"{method} {bare}"):
                return handler(body, *match.groups())
        return problem(404, "not-found", f"no route {method} {bare}")

    def _routes(self) -> list[tuple[str, Callable[..., Answer]]]:
        return [
            ("GET /runtimes", lambda _: (200, {"runtimes": self.runtimes})),
            ("GET /runners", lambda _: (200, {"runners": self.runners})),
            ("GET /functions", lambda _: (200, {"functions": list(self.functions.values())})),
            ("GET /functions/([^/]+)", self._function),
            ("PUT /functions/([^/]+)", self._put_function),
            ("DELETE /functions/([^/]+)", self._delete_function),
            ("POST /functions/([^/]+)/invoke", lambda body, name: (200, body)),
            ("GET /schedules", lambda _: (200, {"schedules": self.schedules})),
            ("POST /schedules/([^/]+)/(pause|resume)", self._pause),
            ("GET /pools", lambda _: (200, {"pools": [self._pool(name) for name in self.pools]})),
            ("PUT /pools/([^/]+)", self._put_pool),
            ("HEAD /bundles/([^/]+)", lambda _, sha: (200 if sha in self.bundles else 404, b"")),
            ("PUT /bundles/([^/]+)", self._put_bundle),
            ("POST /jobs", self._submit),
            ("POST /jobs/batch", self._batch),
            ("GET /jobs/([^/]+)/payload", lambda _, job_id: (200, b'{"n":  1}')),
            ("POST /jobs/([^/]+)/replay", lambda _, job_id: (202, {"id": job_id, "status": "pending"})),
            ("GET /dead", self._page),
            ("POST /dead/(replay|purge)", self._move),
            ("GET /jobs/([^/]+)", self._job),
            ("GET /jobs/([^/]+)/logs", lambda _, job_id: (200, f"printed by {job_id}\n".encode())),
            ("DELETE /jobs/([^/]+)", lambda _, job_id: (200, {"id": job_id, "status": "cancelled"})),
        ]

    def _function(self, _: bytes, name: str) -> Answer:
        if name not in self.functions:
            return problem(404, "unknown-function", f"no function {name} is deployed")
        return 200, self.functions[name]

    def _put_function(self, body: bytes, name: str) -> Answer:
        deployment = Deployment.decode(body)
        for sha in (deployment.bundles.code, deployment.bundles.deps):
            if sha is not None and sha not in self.bundles:
                return problem(422, "unknown-bundle", f"no bundle {sha}")
        before = self.functions.get(name, {}).get("version")
        self.functions[name] = {"name": name, "version": deployment.version(), "deployed_at": DAY}
        self.functions[name] |= msgspec.to_builtins(deployment)
        self.functions[name] |= {"running": 0, "parked": 0}
        return 200, {"name": name, "version": deployment.version(), "changed": before != deployment.version()}

    def _delete_function(self, _: bytes, name: str) -> Answer:
        return (204, b"") if self.functions.pop(name, None) else problem(404, "unknown-function", f"no function {name}")

    def _pool(self, name: str) -> Any:
        queued = {"high": 1, "normal": 20, "low": 300}
        return {"name": name, "spec": self.pools[name], "queued": queued, "processing": 2, "runners": 1} | {
            "waits_for_runner": name in self.unserved
        }

    def _put_pool(self, body: bytes, name: str) -> Answer:
        spec = msgspec.to_builtins(PoolSpec.decode(body))
        changed = self.pools.get(name) != spec
        self.pools[name] = spec
        return 200, {"name": name, "changed": changed}

    def schedule(self, function: str, **changed: Any) -> None:
        """Put a schedule there."""
        base = {"function": function, "cron": "0 2 * * *", "tz": "Europe/Berlin", "catchup": "none", "overlap": "allow"}
        base |= {"paused": False, "last_slot": DAY, "next": [f"2026-11-2{n}T01:00:00.000Z" for n in range(5, 10)]}
        base |= {"last_job": None, "held": 0, "fired": 7, "skipped": 1, "missed": 2, "problem": None}
        self.schedules.append(base | changed)

    def _pause(self, _: bytes, function: str, verb: str) -> Answer:
        for schedule in self.schedules:
            if schedule["function"] == function:
                was, schedule["paused"] = schedule["paused"], verb == "pause"
                return 200, {"function": function, "paused": schedule["paused"], "changed": was != schedule["paused"]}
        return problem(404, "unknown-schedule", f"function '{function}' has no schedule")

    def _put_bundle(self, body: bytes, sha: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != sha:
            return problem(422, "invalid-request", "another digest")
        self.bundles[sha] = body
        return 201, {}

    def _submit(self, body: bytes) -> Answer:
        job = json.loads(body)
        self.record("job-1", name=job["name"])
        return 202, self._taken(1, job)

    def _taken(self, number: int, job: Any) -> Any:
        place = {"version": "103c89f0cdda", "pool": "default", "duplicate": False}
        return {"id": f"job-{number}", "status": "pending", "name": job["name"], **place}

    def _batch(self, body: bytes) -> Answer:
        jobs = json.loads(body)["jobs"]
        told = [
            self._taken(number, job) if job["name"] == "hello" else {"error": {"detail": f"no function {job['name']}"}}
            for number, job in enumerate(jobs, 1)
        ]
        refused = sum("error" in answer for answer in told)
        return 207 if refused else 202, {"jobs": told, "accepted": len(told) - refused, "refused": refused}

    def letter(self, job_id: str) -> None:
        """Put a dead letter there."""
        error = {"type": "ValueError", "message": "boom"}
        base = {"id": job_id, "name": "hello", "version": "103c89f0cdda", "pool": "default", "reason": "permanent"}
        self.letters.append(base | {"error": error, "died_at": DAY, "attempts": 1})

    def _page(self, _: bytes) -> Answer:
        query = self.calls[-1].partition("?")[2]
        match = re.search(r"cursor=(\d+)", query)
        start = int(match[1]) if match else 0
        end = start + 2
        return 200, {"letters": self.letters[start:end], "cursor": str(end) if end < len(self.letters) else None}

    def _move(self, body: bytes, verb: str) -> Answer:
        wanted = json.loads(body)
        known = [letter["id"] for letter in self.letters]
        chosen = wanted.get("ids") or known[:2]
        moved = [job_id for job_id in chosen if job_id in known]
        self.letters = [letter for letter in self.letters if letter["id"] not in moved]
        cursor = "next" if self.letters and "ids" not in wanted else None
        if verb == "purge":
            return 200, {"purged": len(moved), "cursor": cursor}
        refused = [
            {"id": job_id, "code": "unknown-job", "detail": "no such job"} for job_id in chosen if job_id not in moved
        ]
        return 200, {"moved": moved, "refused": refused, "cursor": cursor}

    def _job(self, _: bytes, job_id: str) -> Answer:
        if job_id not in self.jobs:
            return problem(404, "unknown-job", f"no job {job_id}")
        return 200, self.jobs[job_id]

    def deploy(self, name: str) -> None:
        """Have a function of default settings deployed."""
        self.bundles["a" * 64] = b""
        self._put_function(Deployment(spec=FunctionSpec(), bundles=Bundles(code="a" * 64), abi=ABI).encode(), name)


@contextmanager
def serving(gateway: StubGateway) -> Iterator[StubGateway]:
    """Serve it on a free loopback port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            gateway.calls.append(f"{self.command} {self.path}")
            gateway.bodies.append(body)
            gateway.headers.append(dict(self.headers))
            fault = gateway.faults.popleft() if gateway.faults else None
            more: dict[str, str] = {}
            if isinstance(fault, tuple):
                status, content, more = fault
            else:
                status, content = gateway.answer(self.command, self.path, body)
            if fault == "lost":
                self.close_connection = True
                return
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    gateway.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield gateway
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
