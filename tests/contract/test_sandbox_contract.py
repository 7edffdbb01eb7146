"""One contract for every sandbox: the same cases over the public fake and over a real container."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas import pack
from bananas.errors import SandboxDied
from bananas.protocols import Binding, CallReply, HandlerLoadError, Invocation, Sandbox, SandboxFactory, SandboxProfile
from bananas.spec import PoolSpec, RuntimeInfo
from bananas.testing import Exit, FakeSandboxFactory, Hang
from bananas_sdk import Permanent, Retry
from runner.bundles import BundleCache
from runner.docker_driver import Engine
from runner.pool import profile_of
from runner.sandbox import DockerSandboxFactory
from runner.stdio import StdioSandboxFactory

#: The same functions twice: as a module for a real sandbox, and as Python objects for the fake.
SOURCE = """
import os, sys, time
from bananas_sdk import Permanent, Retry, progress

class Never(Exception):
    permanent = True

def echo(event, context): return event
def fails(event, context): raise ValueError("no")
def never(event, context): raise Never("never")
def gives_up(event, context): raise Permanent("never")
def waits(event, context): raise Retry(after_s=2.5)
def tells(event, context):
    for done in range(event):
        progress({"done": done + 1, "of": event})
    return "told"
def babbles(event, context): progress("x" * 5000)
def exits(event, context): os._exit(3)
def hangs(event, context): time.sleep(60)
def prints(event, context):
    print("one")
    print("two")
def attempt(event, context): return [context.job_id, context.attempt]
"""


class Never(Exception):
    permanent = True


def _raise(error: BaseException) -> None:
    raise error


def _prints(event: object, context: object) -> None:
    context.print("one")
    context.print("two")


def _tells(event: int, context: object) -> str:
    for done in range(event):
        context.progress({"done": done + 1, "of": event})
    return "told"


FAKES = {
    "handler.echo": lambda event, context: event,
    "handler.fails": lambda event, context: _raise(ValueError("no")),
    "handler.never": lambda event, context: _raise(Never("never")),
    "handler.gives_up": lambda event, context: _raise(Permanent("never")),
    "handler.waits": lambda event, context: _raise(Retry(after_s=2.5)),
    "handler.tells": _tells,
    "handler.babbles": lambda event, context: context.progress("x" * 5000),
    "handler.exits": lambda event, context: _raise(Exit(3)),
    "handler.hangs": lambda event, context: _raise(Hang()),
    "handler.prints": _prints,
    "handler.attempt": lambda event, context: [context.job_id, context.attempt],
}


class Rig:
    """A factory, and what its sandboxes may be bound to."""

    def __init__(self, factory: SandboxFactory, profile: SandboxProfile, code: str) -> None:
        self._factory = factory
        self._profile = profile
        self._code = code
        self._created: list[Sandbox] = []
        self._ids = itertools.count(1)
        self.printed: list[bytes] = []
        self.told: list[bytes] = []

    def create(self) -> Sandbox:
        sandbox = self._factory.create(self._profile)
        self._created.append(sandbox)
        return sandbox

    def bound(self, handler: str) -> Sandbox:
        sandbox = self.create()
        sandbox.bind(Binding("f", "v1", f"handler.{handler}", self._code, None), 10.0, self.printed.append)
        return sandbox

    def call(self, sandbox: Sandbox, payload: bytes = b"null", timeout_s: float = 10.0) -> CallReply:
        call = Invocation(next(self._ids), "job", 1, payload, timeout_s)
        return sandbox.invoke(call, self.printed.append, self.told.append)

    def close(self) -> None:
        for sandbox in self._created:
            sandbox.terminate()


@pytest.fixture(params=["fake", "docker", "stdio"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        rig = Rig(FakeSandboxFactory(FAKES), profile_of("p", PoolSpec(), "fake", "fake"), "0" * 64)
        yield rig
        rig.close()
    else:
        kind = StdioSandboxFactory if request.param == "stdio" else DockerSandboxFactory
        yield from _docker_rig(kind, request.getfixturevalue("base_image"), request.getfixturevalue("run").labels)


def _docker_rig(
    kind: type[DockerSandboxFactory | StdioSandboxFactory], image: RuntimeInfo, labels: dict[str, str]
) -> Iterator[Rig]:
    folder = Path(tempfile.mkdtemp(prefix="bn-"))
    (folder / "src").mkdir()
    (folder / "src" / "handler.py").write_text(SOURCE, "utf-8")
    bundle = pack.pack(folder / "src", ignore=())
    cache = BundleCache(folder / "cache", {bundle.digest: bundle.data}.__getitem__)
    factory = kind(Engine(), cache, folder / "sb", labels)
    rig = Rig(factory, profile_of("p", PoolSpec(), image.image, image.image_id), bundle.digest)
    yield rig
    rig.close()
    assert not [path for path in os.listdir(folder / "sb") if path != "kit"], "directories were left behind"
    shutil.rmtree(folder)


def test_result_is_json_of_what_the_handler_returned(rig):
    """Payload in, result out, text beyond ASCII too."""
    sandbox = rig.bound("echo")
    for payload in (b"null", b'{"a":[1,2.5,true]}', '"grüße 🍌"'.encode()):
        reply = rig.call(sandbox, payload)
        assert (json.loads(reply.result), reply.error) == (json.loads(payload), None)
        assert reply.reusable


def test_context_names_job_and_attempt(rig):
    """A handler can tell which attempt of which job it is."""
    assert json.loads(rig.call(rig.bound("attempt")).result) == ["job", 1]


def test_an_exception_is_an_answer_and_the_sandbox_goes_on(rig):
    """The handler's error has type, message and traceback; the next call works."""
    sandbox = rig.bound("fails")
    for _ in range(2):
        reply = rig.call(sandbox)
        assert reply.result is None
        assert (reply.error["type"], reply.error["message"]) == ("ValueError", "no")
        assert "traceback" in reply.error
        assert reply.reusable


@pytest.mark.parametrize("handler", ["never", "gives_up"])
def test_permanent_errors_are_marked(rig, handler):
    """An exception with permanent = True says so, whatever its class; the SDK's has it."""
    assert rig.call(rig.bound(handler)).error["permanent"] is True


def test_an_error_may_choose_its_delay(rig):
    """retry_after_s arrives as seconds, with type, message and traceback as of any error."""
    error = rig.call(rig.bound("waits")).error
    assert (error["type"], error["message"], error["retry_after_s"]) == ("Retry", "try again in 2.5 s", 2.5)
    assert "permanent" not in error
    assert "waits" in error["traceback"]


def test_progress_arrives_before_the_answer_and_the_last_value_does(rig):
    """However often a call tells, what it told last is there when its answer is."""
    sandbox = rig.bound("tells")
    for count in (b"1", b"50", b"0"):
        rig.told.clear()
        assert rig.call(sandbox, count).result == b'"told"'
        assert rig.told[-1:] == [b'{"done":%b,"of":%b}' % (count, count)] * (count != b"0")


def test_progress_over_its_limit_is_the_handlers_error(rig):
    """The message has size and limit; nothing is sent; the sandbox goes on."""
    sandbox = rig.bound("babbles")
    for _ in range(2):
        reply = rig.call(sandbox)
        assert reply.error["type"] == "ValueError"
        assert "at most 4096 bytes of JSON, got 5002" in reply.error["message"]
        assert reply.reusable
    assert rig.told == []


def test_output_is_captured_in_order(rig):
    """What a call prints arrives before its answer."""
    rig.call(rig.bound("prints"))
    assert b"".join(rig.printed) == b"one\ntwo\n"


def test_a_process_that_ends_is_not_an_answer(rig):
    """SandboxDied, and terminate tells the status."""
    sandbox = rig.bound("exits")
    with pytest.raises(SandboxDied):
        rig.call(sandbox)
    assert sandbox.terminate().status == 3


def test_the_deadline_ends_a_call(rig):
    """TimeoutError at the deadline; terminate then leaves nothing alive."""
    sandbox = rig.bound("hangs")
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        rig.call(sandbox, timeout_s=0.3)
    assert time.monotonic() - began < 30  # the call takes 60 s
    sandbox.terminate()
    with pytest.raises(SandboxDied):
        rig.call(sandbox)


def test_a_handler_that_is_not_there_is_a_load_error(rig):
    """The error names it; it is the user's, not the platform's."""
    sandbox = rig.create()
    with pytest.raises(HandlerLoadError) as caught:
        sandbox.bind(Binding("f", "v1", "nowhere.handle", rig._code, None), 10.0, lambda _: None)
    assert caught.value.error["type"] == "ModuleNotFoundError"
    assert "nowhere" in caught.value.error["message"]


def test_terminate_is_idempotent(rig):
    """Ending what has ended does nothing and says the same."""
    sandbox = rig.bound("echo")
    assert sandbox.terminate() == sandbox.terminate()


def test_interrupted_sandbox_refuses_calls(rig):
    """After an interrupt nobody gets an answer any more."""
    sandbox = rig.bound("echo")
    sandbox.interrupt()
    with pytest.raises(SandboxDied):
        rig.call(sandbox)
