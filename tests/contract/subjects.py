"""What the conformance suite is run over: each runtime and contract, with the same cases written for it.

Another one is another entry in ``SUBJECTS``. What one cannot do is in ``LACKS``, with the reason.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bananas import pack
from bananas.protocols import Binding, CallReply, Invocation, Sandbox, SandboxFactory, SandboxProfile
from bananas.spec import PoolSpec, RuntimeInfo
from bananas.testing import Exit, FakeSandboxFactory, Hang
from runner import contracts
from runner.access import Access
from runner.bundles import BundleCache
from runner.docker_driver import Engine
from runner.own_container import Workshop
from runner.sandbox import DockerSandboxFactory
from runner.slot import profile_of
from runner.stdio import StdioSandboxFactory
from tests.contract import node_subject

#: Case → what it does, in Python. The same module serves a shim, an HTTP server and a process per job.
HANDLER = """
import asyncio, os, socket, sys, threading, time

calls = []
barriers = {}
arrived = asyncio.Event()

class Gone(Exception):
    permanent = True

class Later(Exception):
    retry_after_s = 2.5

def echo(event, context): return event
def fails(event, context): raise ValueError("no")
def gone(event, context): raise Gone("never")
def later(event, context): raise Later("busy")
def count(event, context):
    calls.append(1)
    return len(calls)
def attempt(event, context): return [context.job_id, context.attempt]
def env(event, context): return {name: os.environ.get(name) for name in event}
def names(event, context): return sorted(os.environ)
def large(event, context): return "x" * event
def prints(event, context):
    sys.stderr.write("eins\\n")
    sys.stderr.write("grüße\\n")
    sys.stderr.flush()
def floods(event, context):
    for _ in range(event):
        sys.stderr.write("x" * 1023 + "\\n")
    sys.stderr.flush()
def exits(event, context): os._exit(3)
def killed(event, context): os.kill(os.getpid(), 9)
def hangs(event, context): time.sleep(60)
def hoards(event, context): return len(bytearray(2**30))
def user(event, context): return [os.getuid(), os.getgid()]
def writes(event, context):
    found = []
    for path in event:
        try:
            with open(path, "w") as file:
                file.write("x")
        except OSError:
            continue
        found.append(path)
    return found
def reaches(event, context):
    found = []
    for host, port in event:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            continue
        found.append([host, port])
    return found
def interfaces(event, context): return sorted(os.listdir("/sys/class/net"))
def meets(event, context):
    print("in", context.job_id)
    barriers.setdefault(event, threading.Barrier(event)).wait(20)
    print("out", context.job_id)
    return [os.getpid(), context.job_id]
async def awaits(event, context):
    print("in", context.job_id)
    calls.append(1)
    if len(calls) == event:
        arrived.set()
    await asyncio.wait_for(arrived.wait(), 20)
    print("out", context.job_id)
    return [os.getpid(), context.job_id]
def parts(event, context):
    barriers.setdefault("parts", threading.Barrier(3)).wait(20)
    if event == "exit":
        os._exit(3)
    print("waits")
    sys.stdout.flush()
    time.sleep(60)
"""

SERVER = """
import http.server, json, os, sys, types
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import handler

class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        context = types.SimpleNamespace(
            job_id=self.headers["Bananas-Job-Id"], attempt=int(self.headers["Bananas-Attempt"])
        )
        name = os.environ["CASE"]
        if name == "babbles":
            return self.answer(200, b"this is no JSON")
        try:
            answer = 200, getattr(handler, name)(json.loads(body), context)
        except Exception as e:
            said = {"type": type(e).__name__, "message": str(e)}
            said |= {key: getattr(e, key) for key in ("permanent", "retry_after_s") if hasattr(e, key)}
            answer = 500, said
        self.answer(answer[0], json.dumps(answer[1], ensure_ascii=False).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

http.server.HTTPServer(("0.0.0.0", int(os.environ["PORT"])), Server).serve_forever()
"""

PROCESS = """
import json, os, sys, types
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import handler

name = os.environ["CASE"]
if name == "babbles":
    print("this is no JSON")
else:
    print(json.dumps(getattr(handler, name)(json.load(sys.stdin), None), ensure_ascii=False))
"""

#: (subject, case) → why there is no such thing.
LACKS = {
    ("fake", "walls"): "its handlers run in the test's own process",
    ("fake", "env"): "its handlers run in the test's own process",
    ("fake", "cap"): "only the runner's log buffer caps what a fake prints",
    ("fake", "too large"): "it has no limit of its own",
    ("fake", "user"): "its handlers run in the test's own process",
    ("exec", "type of error"): "a process says only its status; the message has the end of its standard error",
    ("exec", "permanent"): "a process says only its status",
    ("exec", "warm"): "each call is a new process, so nothing stays in memory",
    ("exec", "attempt"): "a process gets its payload and nothing else",
    ("http", "several calls"): "an image of one's own gets one request at a time",
    ("exec", "several calls"): "each call is a process in a container of its own",
    ("fake", "shared end"): "nothing ends its handlers from outside",
}


class Calling(threading.Thread):
    """One of several calls at once."""

    def __init__(self, sandbox: Sandbox, call: Invocation) -> None:
        super().__init__(daemon=True)
        self._sandbox = sandbox
        self.call = call
        self.printed: list[bytes] = []
        self._end: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._end = self._sandbox.invoke(self.call, self.printed.append, lambda _: None)
        except Exception as e:
            self._end = e

    @property
    def text(self) -> str:
        """Its output so far."""
        return b"".join(self.printed).decode()

    def ended(self) -> Any:
        """Its reply, or what was raised."""
        self.join(30)
        assert not self.is_alive()
        return self._end


@dataclass
class Rig:
    """A factory, and what its sandboxes may be bound to."""

    subject: str
    factory: SandboxFactory
    profile: SandboxProfile
    code: str
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._created: list[Sandbox] = []
        self._ids = itertools.count(1)
        self.printed: list[bytes] = []

    def needs(self, thing: str) -> None:
        """Leave the test out where the subject has no such thing, saying why."""
        if why := LACKS.get((self.subject, thing)):
            pytest.skip(f"{self.subject}: {why}")

    def has(self, thing: str) -> bool:
        """False where ``LACKS`` says why not."""
        return (self.subject, thing) not in LACKS

    def create(self, profile: SandboxProfile | None = None) -> Sandbox:
        sandbox = self.factory.create(profile or self.profile)
        self._created.append(sandbox)
        return sandbox

    def bound(self, case: str, profile: SandboxProfile | None = None, calls: int = 1, **env: str) -> Sandbox:
        sandbox = self.create(profile)
        env = {"CASE": case, **env}
        binding = Binding("f", "v1", f"handler.{case}", self.code, None, env, command=self.command, calls=calls)
        sandbox.bind(binding, 20.0, self.printed.append)
        return sandbox

    def call(self, sandbox: Sandbox, payload: bytes = b"null", timeout_s: float = 20.0) -> CallReply:
        call = Invocation(next(self._ids), "job", 1, payload, timeout_s)
        return sandbox.invoke(call, self.printed.append, lambda _: None)

    def calls(self, sandbox: Sandbox, *calls: tuple[str, float], payload: bytes = b"null") -> list[Calling]:
        """One call under way for each job id and timeout in s."""
        return [Calling(sandbox, Invocation(next(self._ids), job, 1, payload, timeout_s)) for job, timeout_s in calls]

    def close(self) -> None:
        for sandbox in self._created:
            sandbox.terminate()


def _raise(error: BaseException) -> None:
    raise error


class Gone(Exception):
    permanent = True


class Later(Exception):
    retry_after_s = 2.5


def _fakes() -> dict[str, Callable[[Any, Any], object]]:
    calls = itertools.count(1)
    barrier = threading.Barrier(4)

    def meets(event: object, context: Any) -> list[object]:
        context.print(f"in {context.job_id}")
        barrier.wait(20)
        context.print(f"out {context.job_id}")
        return [1, context.job_id]

    def prints(event: object, context: object) -> None:
        context.print("eins")
        context.print("grüße")

    return {
        "handler.echo": lambda event, context: event,
        "handler.fails": lambda event, context: _raise(ValueError("no")),
        "handler.gone": lambda event, context: _raise(Gone("never")),
        "handler.later": lambda event, context: _raise(Later("busy")),
        "handler.count": lambda event, context: next(calls),
        "handler.attempt": lambda event, context: [context.job_id, context.attempt],
        "handler.babbles": lambda event, context: {1},
        "handler.prints": prints,
        "handler.meets": meets,
        "handler.awaits": meets,
        "handler.exits": lambda event, context: _raise(Exit(3)),
        "handler.killed": lambda event, context: _raise(Exit(signal=9)),
        "handler.hangs": lambda event, context: _raise(Hang()),
        "handler.hoards": lambda event, context: _raise(Exit(signal=9, oom=True)),
    }


@contextmanager
def fake(_: RuntimeInfo, __: dict[str, str]) -> Iterator[Rig]:
    """``bananas.testing``."""
    yield Rig("fake", FakeSandboxFactory(_fakes()), profile_of("p", PoolSpec(), "fake", "fake"), "0" * 64)


def _real(
    subject: str, files: dict[str, str], shim: str, command: tuple[str, ...] = ()
) -> Callable[[RuntimeInfo, dict[str, str]], object]:
    @contextmanager
    def rig(image: RuntimeInfo, labels: dict[str, str]) -> Iterator[Rig]:
        folder = Path(tempfile.mkdtemp(prefix="bn-"))
        (folder / "src").mkdir()
        for name, text in files.items():
            (folder / "src" / name).write_text(text, "utf-8")
        bundle = pack.pack(folder / "src", ignore=())
        cache = BundleCache(folder / "cache", {bundle.digest: bundle.data}.__getitem__)
        engine = Engine()
        kind = StdioSandboxFactory if subject == "python over stdio" else DockerSandboxFactory
        shims = kind(engine, cache, folder / "sb", labels)
        workshop = Workshop(engine, cache, folder / "sb", labels, Access())
        profile = profile_of("p", PoolSpec(memory_mb=64), image.image, image.image_id, shim)
        yield Rig(subject, contracts.of_runner(shims, workshop, lambda: image), profile, bundle.digest, command)
        left = [path for path in os.listdir(folder / "sb") if path not in ("kit", "helpers")]
        assert not left, "directories were left behind"
        shutil.rmtree(folder)

    return rig


_CODE = "/run/bananas/code"
BABBLES = "\ndef babbles(event, context): return {1}\n"
SUBJECTS = {
    "fake": fake,
    "python": _real("python", {"handler.py": HANDLER + BABBLES}, "python"),
    "python over stdio": _real("python over stdio", {"handler.py": HANDLER + BABBLES}, "python"),
    "node": _real("node", {"handler.js": node_subject.HANDLER}, "node"),
    "http": _real("http", {"handler.py": HANDLER, "server.py": SERVER}, "http", ("python3", f"{_CODE}/server.py")),
    "exec": _real("exec", {"handler.py": HANDLER, "main.py": PROCESS}, "exec", ("python3", f"{_CODE}/main.py")),
}


def with_limits(rig: Rig, **limits: object) -> SandboxProfile:
    """The rig's profile with other settings."""
    return replace(rig.profile, **limits)
