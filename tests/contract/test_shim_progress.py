"""Progress on its way from a handler to the runner's socket: what is sent, when, and how little of a flood."""

from __future__ import annotations

import inspect
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest

import bananas_sdk
from bananas.errors import ProtocolError
from bananas.protocols import Invocation
from bananas.settings import LIMITS
from runner import framing
from runner.sandbox import DockerSandbox
from runner.shim.python import progress
from runner.transport import SocketChannel
from tests.contract.shim_host import Answer, ShimHost

HEAD = "import os, signal, subprocess, sys, threading, time\nfrom bananas_sdk import progress\n"


def handler(body: str) -> str:
    return HEAD + "def handle(event, context):\n    " + body.replace("\n", "\n    ") + "\n"


def values(answer: Answer) -> list[Any]:
    return [value for _, value in answer.told]


def test_the_first_value_is_sent_at_once() -> None:
    """Whoever looks at the job sees the first step when it is done, not when the call is."""
    with ShimHost(handler("progress({'done': 1, 'of': 2})\ntime.sleep(0.6)\nreturn 5")) as host:
        answer = host.ready().call()
        answered_s = time.monotonic()
    assert values(answer) == [{"done": 1, "of": 2}]
    assert answer.json() == 5
    assert answered_s - answer.told[0][0] > 0.4


def test_what_comes_within_the_gap_is_sent_after_it_and_only_the_latest() -> None:
    """A handler that goes on computing without another word is not behind by more than the gap."""
    with ShimHost(handler("for n in range(100): progress(n)\ntime.sleep(1)\nprogress('end')")) as host:
        answer = host.ready().call()
    first, *middle, end = answer.told
    assert (first[1], end[1]) == (0, "end")
    assert [value for _, value in middle] == [99]
    assert 0.1 < middle[0][0] - first[0] < 0.7


def test_a_million_calls_are_a_few_frames() -> None:
    """Nothing that a handler does with progress costs the runner more than 5 frames per second; the last one counts."""
    body = "began = time.monotonic()\nfor n in range(event): progress(n)\nreturn time.monotonic() - began"
    with ShimHost(handler(body)) as host:
        answer = host.ready().call(1_000_000, timeout_s=60)
    took_s = answer.json()
    assert values(answer)[-1] == 999_999
    assert len(answer.told) <= 2 + took_s / progress.GAP_S
    assert values(answer) == sorted(values(answer))


def test_short_calls_send_what_they_told_before_their_answer() -> None:
    """Within the gap of the call before, too, and never with another call's id."""
    with ShimHost(handler("if event: progress(event)")) as host:
        host.ready()
        assert [values(host.call(n)) for n in (1, 2, 0, 3)] == [[1], [2], [], [3]]


def test_threads_may_tell() -> None:
    """Any thread of the process, many at a time."""
    body = (
        "def work(k):\n    for n in range(5000): progress([k, n])\n"
        "threads = [threading.Thread(target=work, args=[k]) for k in range(8)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()\nprogress('all')"
    )
    with ShimHost(handler(body)) as host:
        answer = host.ready().call()
        assert values(answer)[-1] == "all"
        assert answer.frame.kind == framing.RESULT
        assert values(host.call())[-1] == "all"


def test_signal_handlers_may_tell() -> None:
    """Also one that interrupts progress() itself, which then must not wait for itself."""
    body = (
        "signal.signal(signal.SIGALRM, lambda *_: progress('alarm'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)\n"
        "until = time.monotonic() + 1\n"
        "while time.monotonic() < until: progress('loop')\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\nprogress('end')"
    )
    with ShimHost(handler(body)) as host:
        answer = host.ready().call()
    assert answer.frame.kind == framing.RESULT, answer
    assert values(answer)[-1] == "end"


def test_child_processes_are_not_heard() -> None:
    """A fork, a multiprocessing worker and another program: each may call it, nothing comes of it, nothing breaks."""
    body = (
        "pid = os.fork()\n"
        "if pid == 0:\n    progress('fork')\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "code = 'import sys; sys.path.append(sys.argv[1]); import bananas_sdk; bananas_sdk.progress(1)'\n"
        "subprocess.run([sys.executable, '-c', code, sys.path[-1]], check=True)\n"
        "progress('parent')"
    )
    with ShimHost(handler(body)) as host:
        answer = host.ready().call()
        assert answer.frame.kind == framing.RESULT, answer
        assert values(answer) == ["parent"]


def test_nothing_is_sent_while_loading_and_between_calls() -> None:
    """There is no call that it could belong to."""
    source = HEAD + (
        "progress('loading')\nlate = threading.Event()\n"
        "def wait():\n    late.wait()\n    progress('late')\n"
        "def handle(event, context):\n    if event:\n        threading.Thread(target=wait).start()\n"
        "        threading.Timer(0.1, late.set).start()\n"
    )
    with ShimHost(source) as host:
        assert host.init().told == []
        assert host.call(1).told == []
        time.sleep(0.5)
        assert host.call().told == []


def test_what_was_told_before_a_crash_is_sent() -> None:
    """A call that told something a gap ago and dies had it sent."""
    with ShimHost(handler("progress(1)\nprogress(2)\ntime.sleep(0.5)\nos._exit(3)")) as host:
        answer = host.ready().call()
    assert (values(answer), answer.frame.kind) == ([1, 2], framing.EXIT)


def test_a_runner_that_does_not_read_loses_nothing_of_the_end() -> None:
    """After a stall of the runner the latest value is there, and the handler did not wait for it."""
    body = "for n in range(15):\n    progress(n)\n    time.sleep(0.1)\nprogress('end')\nreturn time.monotonic()"
    with ShimHost(handler(body)) as host:
        host.ready().start_call()
        time.sleep(2.5)
        answer = host.answer()
    assert values(answer)[-1] == "end"
    assert time.monotonic() - answer.json() > 0.5


def test_without_threads_it_goes_out_with_the_answer() -> None:
    """Where the process limit allows no thread any more, progress() is no error."""
    body = (
        "import _thread\n"
        'def none(*_): raise RuntimeError("can\'t start new thread")\n'
        "real, _thread.start_new_thread = _thread.start_new_thread, none\n"
        "for n in range(10): progress(n)"
    )
    with ShimHost(handler(body)) as host:
        host.ready()
        assert values(host.call()) == [0, 9]
        assert values(host.call())[-1] == 9


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("{1}", "TypeError", "progress takes JSON (dict, list, str, number, bool or None), not {1}: "),
        ("float('nan')", "TypeError", "not nan: Out of range"),
        ("'\\ud800'", "TypeError", "surrogates not allowed"),
        ("'x' * 4095", "ValueError", "at most 4096 bytes of JSON, got 4097; tell a summary"),
        ("'ü' * 2048", "ValueError", "got 4098"),
    ],
)
def test_what_it_cannot_take_is_an_error_that_says_so(value: str, kind: str, words: str) -> None:
    """Size, limit and next step; and it is caught like any other error."""
    with ShimHost(handler(f"progress({value})")) as host:
        answer = host.ready().call()
    assert (answer.meta["type"], answer.told) == (kind, [])
    assert words in answer.meta["message"]


def test_a_function_may_have_a_module_of_that_name() -> None:
    """The SDK comes last on the path: user code is never shadowed."""
    with ShimHost(
        "import bananas_sdk\ndef handle(e, c): return bananas_sdk.X\n", files={"code/bananas_sdk.py": "X = 1"}
    ) as host:
        assert host.ready().call().json() == 1


def test_outside_of_a_sandbox_it_only_checks() -> None:
    """Unit tests of user code need no sandbox."""
    bananas_sdk.progress({"done": 1})
    with pytest.raises(ValueError, match="got 5002"):
        bananas_sdk.progress("x" * 5000)
    assert LIMITS.progress_bytes == bananas_sdk.PROGRESS_BYTES


def test_the_guides_example_does_what_its_comments_say() -> None:
    """docs/handlers.md: progress, a retry after 30 s, and the end without one."""
    guide = Path(__file__).parents[2] / "docs/handlers.md"
    with ShimHost(guide.read_text("utf-8").split("```python\n")[1].split("```")[0]) as host:
        host.ready()
        sent = host.call({"to": ["a@example.com", "b@example.com"]})
        assert (sent.json(), values(sent)[-1]) == ({"sent": 2}, {"done": 2, "of": 2})
        assert host.call({"to": ["a@example.com"], "busy": True}).meta["retry_after_s"] == 30
        nobody = host.call({"to": ["nobody"]}).meta
        assert (nobody["permanent"], nobody["message"]) == (True, "'nobody' is no address")


# -- what a sandbox may send, and what it may not -------------------------------------------------------------------


class Forged:
    """The runner's half of a sandbox whose other half says what the test wants."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        parts: dict[str, Any] = dict.fromkeys(inspect.signature(DockerSandbox).parameters)
        self.sandbox = DockerSandbox(**parts | {"sandbox_id": "forged", "channel": SocketChannel(ours)})
        self.told: list[bytes] = []

    def __enter__(self) -> Forged:
        return self

    def __exit__(self, *_: object) -> None:
        self.theirs.close()
        self.sandbox._channel.close()

    def say(self, kind: int, call_id: int, body: bytes) -> None:
        self.theirs.sendall(struct.pack(">IBQI", 13 + 2 + len(body), kind, call_id, 2) + b"{}" + body)

    def invoke(self) -> bytes | None:
        reply = self.sandbox.invoke(Invocation(7, "job", 1, b"null", 5), lambda _: None, self.told.append)
        return reply.result


def test_a_frame_of_progress_reaches_the_caller() -> None:
    """Exactly the bytes."""
    with Forged() as forged:
        forged.say(framing.PROGRESS, 7, b'{"done":1}')
        forged.say(framing.RESULT, 7, b"1")
        assert (forged.invoke(), forged.told) == (b"1", [b'{"done":1}'])


@pytest.mark.parametrize(
    ("call_id", "body", "words"),
    [
        (7, b'"%s"' % (b"x" * 4096), "a progress of 4098 bytes, the limit is 4096"),
        (7, b"", "not JSON"),
        (7, b"NaN", "not JSON"),
        (7, b'"\xff"', "not JSON"),
        (7, b"1 2", "not JSON"),
        (8, b"1", "progress of call 8, which does not run"),
        (0, b"1", "progress of call 0, which does not run"),
    ],
)
def test_forged_progress_ends_the_sandbox(call_id: int, body: bytes, words: str) -> None:
    """What the shim would never send is a violation, and nothing of it is passed on."""
    with Forged() as forged:
        forged.say(framing.PROGRESS, call_id, body)
        with pytest.raises(ProtocolError, match=words):
            forged.invoke()
        assert forged.told == []


def test_a_flood_of_forged_progress_ends_the_sandbox_soon() -> None:
    """Past the SDK, straight to the socket: after a few frames the runner has had enough."""
    with Forged() as forged:
        for _ in range(100):
            forged.say(framing.PROGRESS, 7, b"1")
        with pytest.raises(ProtocolError, match="more often than its shim does"):
            forged.invoke()
        assert len(forged.told) <= 20


def test_the_module_is_one_file_of_the_standard_library() -> None:
    """What the sandbox has is what the wheel has."""
    with ShimHost("import bananas_sdk\ndef handle(e, c): return open(bananas_sdk.__file__).read()\n") as host:
        text = host.ready().call().json()
    with open(bananas_sdk.__file__) as file:
        assert file.read() == text
    assert os.path.basename(bananas_sdk.__file__) == "bananas_sdk.py"
