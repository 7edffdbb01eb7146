"""Several calls at once in one sandbox of Node: each with its own answer, output, progress and uncaught errors."""

from __future__ import annotations

import time
from pathlib import Path

from runner import framing
from tests.contract.node_host import NodeHost
from tests.contract.test_shim_several import Several

HEAD = "const fs = require('fs'); const nap = (ms) => new Promise((resolve) => setTimeout(resolve, ms));\n"
#: Resolves when so many calls wait in it.
MEET = """
let waiting = [];
const meet = (of) => new Promise((resolve) => {
  waiting.push(resolve);
  if (waiting.length === of) { for (const go of waiting) go(); waiting = []; }
});
"""


def handler(body: str) -> str:
    return HEAD + MEET + f"exports.handle = async (event, context) => {{ {body} }};"


def test_calls_overlap_and_are_answered_as_they_end(node: Path) -> None:
    """The second call, which the first one waits for inside, ends first."""
    body = "await meet(2); if (event === 'slow') await nap(200); return event"
    with NodeHost(node, handler(body)) as host:
        several = Several(host.ready(calls=2))
        slow, quick = host.start_call("slow"), host.start_call("quick")
        assert several.results(slow, quick) == ["slow", "quick"]
        assert several.order == [quick, slow]
        assert "reusable" not in several.answers[slow].meta


def test_output_and_progress_are_those_of_each_call(node: Path) -> None:
    """Through awaits, timers and streams; also pieces of a line, which nobody completes."""
    body = """
        for (let n = 0; n < 20; n++) {
          process.stdout.write(event + ' ');
          await nap(2);
          console.error(n, event);
        }
        context.progress({call: event});
        setTimeout(() => process.stdout.write(Buffer.from('end of ' + event)), 1);
        await nap(50);
        return context.jobId;
        """
    names = ["a", "b", "c", "d"]
    with NodeHost(node, handler(body)) as host:
        several = Several(host.ready(calls=4))
        for _ in range(2):
            calls = [host.start_call(name) for name in names]
            assert several.results(*calls) == [f"job-{call}" for call in calls]
            for name, call in zip(names, calls, strict=True):
                assert (
                    several.logs[call].decode() == "".join(f"{name} {n} {name}\n" for n in range(20)) + f"end of {name}"
                )
                assert several.told[call] == [{"call": name}]
    assert 0 not in several.logs


def test_output_of_unknown_origin_has_no_call(node: Path) -> None:
    """A program and what is written past the streams; it comes before the answers, under the call id 0."""
    body = """
        require('child_process').execFileSync('/bin/sh', ['-c', 'echo from a program'], {stdio: 'inherit'});
        fs.writeSync(1, 'to the descriptor\\n');
        console.log('from the call');
        await meet(2);
        """
    with NodeHost(node, handler(body)) as host:
        several = Several(host.ready(calls=2))
        calls = [host.start_call(), host.start_call()]
        several.results(*calls)
    assert sorted(several.logs[0].decode().splitlines()) == ["from a program"] * 2 + ["to the descriptor"] * 2
    assert [several.logs[call] for call in calls] == [b"from the call\n"] * 2


def test_the_cap_on_output_is_each_calls_own(node: Path) -> None:
    """One that prints too much takes nothing away from the other."""
    body = "for (let n = 0; n < event; n++) console.log('x'.repeat(99)); await meet(2)"
    with NodeHost(node, handler(body)) as host:
        several = Several(host.ready(calls=2, log_bytes=1000))
        loud, quiet = host.start_call(50), host.start_call(10)
        several.results(loud, quiet)
    assert several.logs[loud] == (b"x" * 99 + b"\n") * 10 + b"<4000 dropped>"
    assert several.logs[quiet] == (b"x" * 99 + b"\n") * 10


def test_an_error_that_nobody_catches_is_that_of_its_call(node: Path) -> None:
    """In a timer or in a promise; the other call ends well, and both say that the sandbox must not be used again."""
    for throws in ("setTimeout(() => { throw new Error('late') }, 1)", "Promise.reject(new Error('late'))"):
        body = f"await meet(2); if (event) {{ {throws}; await nap(60000) }} await nap(300); return 'fine'"
        with NodeHost(node, handler(body)) as host:
            several = Several(host.ready(calls=2))
            fine, bad = host.start_call(0), host.start_call(1)
            assert several.results(fine) == ["fine"]
            error = several.answers[bad].meta
        assert (error["type"], error["message"]) == ("Error", "late")
        assert error["why_not"] == several.answers[fine].meta["why_not"]
        assert error["why_not"].startswith("left an error uncaught")


def test_what_an_ended_call_left_hurts_no_other(node: Path) -> None:
    """Its error is told, and the sandbox is not used again."""
    body = "if (event) { setTimeout(() => { throw new Error('late') }, 50); return 1 } await nap(500); return 2"
    with NodeHost(node, handler(body)) as host:
        several = Several(host.ready(calls=2))
        stays, leaves = host.start_call(0), host.start_call(1)
        assert several.results(leaves, stays) == [1, 2]
        assert several.answers[stays].meta["why_not"].startswith("left an error uncaught")
        assert b"Error: late" in several.logs[0]


def test_more_calls_than_init_said_end_the_sandbox(node: Path) -> None:
    """The runner counts; a sandbox that gets too many says so and ends."""
    with NodeHost(node, handler("await nap(60000)")) as host:
        several = Several(host.ready(calls=2))
        for _ in range(2):
            host.start_call()
        third = host.start_call()
        several.until(lambda: 0 in several.answers)
    assert several.answers[third].meta["kind"] == "protocol"
    assert several.answers[0].kind == framing.EXIT


def test_left_processes_are_asked_for_when_no_call_runs(node: Path) -> None:
    """While others run a child may be theirs; the last answer says that the sandbox must not be used again."""
    body = """
        await meet(2);
        if (event) require('child_process').spawn('sleep', ['5'], {stdio: 'ignore'});
        else await nap(300);
        """
    with NodeHost(node, handler(body)) as host:
        several = Several(host.ready(calls=2))
        last, child = host.start_call(0), host.start_call(1)
        several.results(child, last)
    assert "reusable" not in several.answers[child].meta
    assert several.answers[last].meta["why_not"] == "left child processes running"


def test_a_crash_is_reported_once_with_the_last_output(node: Path) -> None:
    """The end of the process is the end of all its calls."""
    body = """
        console.log('begun', event);
        await meet(2);
        if (event) { fs.writeSync(2, 'last words'); process.exit(9); }
        await nap(60000);
        """
    with NodeHost(node, handler(body)) as host:
        several = Several(host.ready(calls=2))
        calls = [host.start_call(0), host.start_call(1)]
        several.until(lambda: 0 in several.answers)
    assert several.answers[0].meta["status"] == 9
    assert several.logs == {calls[0]: b"begun 0\n", calls[1]: b"begun 1\n", 0: b"last words"}


def test_the_order_to_end_kills_all_calls_at_once(node: Path) -> None:
    """Also when one of them computes."""
    with NodeHost(node, handler("await meet(3); for (;;) ;")) as host:
        host.ready(calls=3)
        for _ in range(3):
            host.start_call()
        began_s = time.monotonic()
        assert host.end(20.0).meta["ordered"] is True
    assert time.monotonic() - began_s < 20
