"""Several calls at once in one sandbox: each with its own answer, output, progress and variables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from runner import framing
from runner.framing import Frame
from tests.contract.shim_host import ShimHost

BOTH = pytest.mark.parametrize("is_async", [True, False], ids=["async", "threads"])


class Several:
    """What came from the sandbox, by call id."""

    def __init__(self, host: ShimHost) -> None:
        self.host = host
        self.answers: dict[int, Frame] = {}
        self.logs: dict[int, bytes] = {}
        self.told: dict[int, list[Any]] = {}
        self.order: list[int] = []

    def until(self, is_enough: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Read frames until then."""
        deadline = time.monotonic() + timeout_s
        while not is_enough():
            frame = self.host.reader.read(deadline - time.monotonic())
            if frame.kind == framing.LOG:
                assert frame.call_id not in self.answers, f"output after the answer: {frame}"
                self.logs[frame.call_id] = self.logs.get(frame.call_id, b"") + frame.body
                if frame.meta.get("truncated"):
                    self.logs[frame.call_id] += b"<%d dropped>" % frame.meta["dropped_bytes"]
            elif frame.kind == framing.PROGRESS:
                self.told.setdefault(frame.call_id, []).append(json.loads(frame.body))
            else:
                assert frame.call_id not in self.answers
                self.answers[frame.call_id] = frame
                self.order.append(frame.call_id)

    def results(self, *calls: int) -> list[Any]:
        """Values of these calls, once they are there."""
        self.until(lambda: all(call in self.answers for call in calls))
        frames = [self.answers[call] for call in calls]
        assert {frame.kind for frame in frames} == {framing.RESULT}, frames
        return [json.loads(frame.body) for frame in frames]


def handler(body: str, is_async: bool, head: str = "") -> str:
    """A handler's source in both kinds; ``nap(s)`` sleeps."""
    source = "import asyncio, contextvars, os, sys, threading, time\nfrom bananas_sdk import progress\n" + head
    source += f"{'async ' * is_async}def nap(s):\n    {'await asyncio.sleep(s)' if is_async else 'time.sleep(s)'}\n"
    text = body.replace("nap(", "await nap(" if is_async else "nap(").replace("\n", "\n    ")
    return source + f"{'async ' * is_async}def handle(event, context):\n    {text}\n"


@BOTH
def test_calls_overlap_and_are_answered_as_they_end(is_async: bool) -> None:
    """The second, shorter call does not wait for the first; both were inside at the same time."""
    source = handler("inside.append(event)\nnap(event)\nreturn [event, len(inside)]", is_async, "inside = []\n")
    with ShimHost(source) as host:
        several = Several(host.ready(calls=2))
        slow, quick = host.start_call(0.5), host.start_call(0.1)
        assert several.results(slow, quick) == [[0.5, 2], [0.1, 2]]
        assert several.order == [quick, slow]
        assert "reusable" not in several.answers[slow].meta


@BOTH
def test_output_progress_and_variables_are_those_of_each_call(is_async: bool) -> None:
    """Lines are never mixed, not even halves of them; the context variable of one call is not seen by another."""
    head = "who = contextvars.ContextVar('who')\nwho.set('loading')\n"
    body = (
        "before = who.get()\n"
        "who.set(event)\n"
        "for n in range(20):\n"
        "    print(event, end=' ')\n"
        "    nap(0.002)\n"
        "    print(n, who.get(), file=sys.stderr)\n"
        "progress({'call': event})\n"
        "sys.stdout.buffer.write(b'end of ' + event.encode())\n"
        "return [before, who.get(), context.job_id]"
    )
    names = ["a", "b", "c", "d"]
    with ShimHost(handler(body, is_async, head)) as host:
        several = Several(host.ready(calls=4))
        for _ in range(2):  # the second time on threads and tasks that are there already
            calls = [host.start_call(name) for name in names]
            assert several.results(*calls) == [["loading", n, f"job-{c}"] for n, c in zip(names, calls, strict=True)]
            for name, call in zip(names, calls, strict=True):
                lines = "".join(f"{name} {n} {name}\n" for n in range(20)) + f"end of {name}"
                assert several.logs[call].decode() == lines
                assert several.told[call] == [{"call": name}]
    assert 0 not in several.logs


@BOTH
def test_output_of_unknown_origin_has_no_call(is_async: bool) -> None:
    """A program and a thread of user code write past it; it comes before the answers, under the call id 0."""
    body = (
        "os.system('echo from a program')\n"
        "thread = threading.Thread(target=print, args=('from a thread',))\n"
        "thread.start()\nthread.join()\n"
        "print('from the call')\n"
        "nap(0.05)"
    )
    with ShimHost(handler(body, is_async)) as host:
        several = Several(host.ready(calls=2))
        calls = [host.start_call(), host.start_call()]
        several.results(*calls)
    assert sorted(several.logs[0].decode().splitlines()) == ["from a program"] * 2 + ["from a thread"] * 2
    assert [several.logs[call] for call in calls] == [b"from the call\n"] * 2


@BOTH
def test_the_cap_on_output_is_each_calls_own(is_async: bool) -> None:
    """One that prints too much takes nothing away from the other."""
    body = "for _ in range(event):\n    print('x' * 99)\nnap(0.05)"
    with ShimHost(handler(body, is_async)) as host:
        several = Several(host.ready(calls=2, log_bytes=1000))
        loud, quiet = host.start_call(50), host.start_call(10)
        several.results(loud, quiet)
    assert several.logs[loud] == (b"x" * 99 + b"\n") * 10 + b"<4000 dropped>"
    assert several.logs[quiet] == (b"x" * 99 + b"\n") * 10


@BOTH
def test_errors_are_answers_with_clean_tracebacks(is_async: bool) -> None:
    """A call that fails, exits or returns no JSON leaves the others alone."""
    body = (
        "if event == 'raise':\n    raise ValueError('no')\n"
        "if event == 'exit':\n    sys.exit(3)\n"
        "if event == 'set':\n    return {1}\n"
        "nap(0.2)\nreturn event"
    )
    with ShimHost(handler(body, is_async)) as host:
        several = Several(host.ready(calls=4))
        fine = host.start_call("fine")
        calls = {event: host.start_call(event) for event in ("raise", "exit", "set")}
        assert several.results(fine) == ["fine"]
        errors = {event: several.answers[call].meta for event, call in calls.items()}
        code, shim = str(host.root / "code"), str(host.root / "shim")
    assert {event: meta["type"] for event, meta in errors.items()} == {
        "raise": "ValueError",
        "exit": "SystemExit",
        "set": "ResultNotJson",
    }
    assert code in errors["raise"]["traceback"]
    assert shim not in errors["raise"]["traceback"]


def test_tasks_left_by_one_call_are_cancelled_and_those_of_others_run_on() -> None:
    """Whose a task is, is told by its variables."""
    body = (
        "async def tick():\n"
        "    while True:\n"
        "        await asyncio.sleep(0.01)\n"
        "task = asyncio.create_task(tick())\n"
        "nap(event)\n"
        "return task.done()"
    )
    with ShimHost(handler(body, True)) as host:
        several = Several(host.ready(calls=2))
        slow, quick = host.start_call(0.3), host.start_call(0.02)
        assert several.results(slow, quick) == [False, False]
    for call in (slow, quick):
        assert b"left 1 task running, now cancelled: handle.<locals>.tick" in several.logs[call]


@BOTH
def test_more_calls_than_init_said_end_the_sandbox(is_async: bool) -> None:
    """The runner counts; a sandbox that gets too many says so and ends."""
    with ShimHost(handler("nap(5)", is_async)) as host:
        several = Several(host.ready(calls=2))
        host.start_call()
        host.start_call()
        third = host.start_call()
        several.until(lambda: 0 in several.answers)
    meta = several.answers[third].meta
    assert (meta["kind"], meta["message"]) == (
        "protocol",
        "the sandbox got more calls at once than init said (frame kind 3) and ends",
    )
    assert several.answers[0].kind == framing.EXIT


@BOTH
def test_left_processes_are_asked_for_when_no_call_runs(is_async: bool) -> None:
    """While others run a child may be theirs; the last answer says that the sandbox must not be used again."""
    body = "import subprocess\nif event == 'child':\n    subprocess.Popen(['sleep', '5'])\nelse:\n    nap(0.2)"
    with ShimHost(handler(body, is_async)) as host:
        several = Several(host.ready(calls=2))
        last, child = host.start_call(), host.start_call("child")
        several.results(child, last)
    assert "reusable" not in several.answers[child].meta
    assert several.answers[last].meta["why_not"] == "left child processes running"


@BOTH
def test_a_crash_is_reported_once_with_what_is_in_the_pipe(is_async: bool) -> None:
    """The end of the process is the end of all its calls."""
    body = (
        "print('begun', event)\n"
        "if event == 'crash':\n    nap(0.05)\n    os.write(2, b'last words')\n    os._exit(9)\n"
        "nap(5)"
    )
    with ShimHost(handler(body, is_async)) as host:
        several = Several(host.ready(calls=2))
        calls = [host.start_call("stay"), host.start_call("crash")]
        several.until(lambda: 0 in several.answers)
    assert several.answers[0].meta["status"] == 9
    assert several.logs == {calls[0]: b"begun stay\n", calls[1]: b"begun crash\n", 0: b"last words"}


@BOTH
def test_the_order_to_end_kills_all_calls_at_once(is_async: bool) -> None:
    """A deadline of one call ends the process, whatever the others do."""
    with ShimHost(handler("while event:\n    pass\nnap(60)", is_async)) as host:
        host.ready(calls=3)
        for event in (0, 0, 1):
            host.start_call(event)
        began_s = time.monotonic()
        assert host.end().meta["ordered"] is True
    assert time.monotonic() - began_s < 20  # the calls take a minute


@BOTH
def test_a_finalizer_may_print_while_output_is_sent(is_async: bool) -> None:
    """Nothing waits for a lock that its own thread holds."""
    head = (
        "import gc\nclass Loud:\n"
        "    def __init__(self):\n        self.me = self\n"
        "    def __del__(self):\n        print('gone')\n"
    )
    body = "for n in range(300):\n    Loud()\n    print(n)\ngc.collect()\nnap(0)"
    with ShimHost(handler(body, is_async, head + "gc.set_threshold(1)\n")) as host:
        several = Several(host.ready(calls=2))
        calls = [host.start_call(), host.start_call()]
        several.results(*calls)
    assert b"".join(several.logs.values()).count(b"gone\n") == 600


def test_calls_wait_where_no_more_threads_can_be_started() -> None:
    """The pool's pids are used up: two threads serve five calls, and the log says what would help."""
    head = (
        "start = threading.Thread.start\ntried = []\n"
        "def limited(thread):\n"
        "    tried.append(1)\n"
        '    if len(tried) > 2:\n        raise RuntimeError("can\'t start new thread")\n'
        "    start(thread)\n"
        "threading.Thread.start = limited\n"
    )
    with ShimHost(handler("print(event)\nnap(0.1)\nreturn event", False, head)) as host:
        several = Several(host.ready(calls=5))
        calls = [host.start_call(n) for n in range(5)]
        assert several.results(*calls) == list(range(5))
    assert (
        several.logs[0] == b"bananas: can't start new thread: calls wait for those that run; raise pids of the pool\n"
    )


def test_what_is_printed_at_the_same_moment_is_all_sent() -> None:
    """Nobody waits for the turn to send, and nothing waits for a next line: the calls go on without a word."""
    head = "barrier = threading.Barrier(8)\n"
    body = "for n in range(50):\n    barrier.wait(20)\n    print(n)\nnap(60)"
    with ShimHost(handler(body, False, head)) as host:
        several = Several(host.ready(calls=8))
        calls = [host.start_call() for _ in range(8)]
        lines = "".join(f"{n}\n" for n in range(50)).encode()
        several.until(lambda: all(several.logs.get(call) == lines for call in calls), 25.0)


def test_many_calls_in_turn_and_at_once() -> None:
    """A thousand calls through ten seats: every answer is the right one."""
    with ShimHost(handler("nap(0.001)\nreturn event", True)) as host:
        several = Several(host.ready(calls=10))
        open_calls: dict[int, int] = {}
        for n in range(1000):
            if len(open_calls) == 10:
                several.until(lambda: any(call in several.answers for call in open_calls))
                for call in [call for call in open_calls if call in several.answers]:
                    assert json.loads(several.answers[call].body) == open_calls.pop(call)
            open_calls[host.start_call(n)] = n
        assert several.results(*open_calls) == list(open_calls.values())
