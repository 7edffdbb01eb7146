"""What a function prints: all of it up to the cap, in order, before the answer, and never in another call's logs."""

from __future__ import annotations

import resource
import time

import pytest

from tests.contract.shim_host import LOG_BYTES, ShimHost


def handler(body: str) -> str:
    head = "import logging, os, subprocess, sys, threading, time, warnings\ndef handle(event, context):\n    "
    return head + body.replace("\n", "\n    ") + "\n"


def test_output_of_every_kind_is_captured_in_order() -> None:
    """print, stderr, subprocesses, raw descriptors, logging; one stream, as written."""
    body = (
        "print('one')\n"
        "print('two', file=sys.stderr)\n"
        "subprocess.run(['sh', '-c', 'echo three; echo four >&2'])\n"
        "os.write(1, b'five\\n')\n"
        "logging.warning('six')\n"
        "sys.__stdout__.write('seven\\n')\n"
        "print('eight', end='')"
    )
    with ShimHost(handler(body)) as host:
        answer = host.ready().call()
    assert answer.json() is None
    assert answer.logs == b"one\ntwo\nthree\nfour\nfive\nWARNING:root:six\nseven\neight"
    assert answer.cut is None
    assert {call_id for call_id, _ in answer.log_frames} == {1}


def test_output_that_is_not_text_passes_through() -> None:
    """Bytes are bytes; and text that UTF-8 cannot hold does not make print fail."""
    with ShimHost(handler("os.write(1, bytes(range(256)))\nprint('\\ud800')")) as host:
        assert host.ready().call().logs == bytes(range(256)) + b"\\ud800\n"


def test_logs_of_one_call_are_never_in_another() -> None:
    """Also with a thread that goes on printing: what it prints between calls belongs to none."""
    body = (
        "if event == 'leave':\n"
        "    def late():\n"
        "        released.wait()\n"
        "        print('late', flush=True)\n"
        "        printed.set()\n"
        "    threading.Thread(target=late).start()\n"
        "    return\n"
        "if event == 'release':\n"
        "    threading.Timer(0.05, released.set).start()\n"
        "    return\n"
        "if event == 'wait':\n"
        "    printed.wait(5)\n"
        "print(f'call {event}')"
    )
    source = "import threading\nreleased, printed = threading.Event(), threading.Event()\n"
    with ShimHost(source + handler(body)) as host:
        host.ready()
        for number in range(200):
            assert host.call(number).logs == b"call %d\n" % number
        assert host.call("leave").logs == host.call("release").logs == b""
        time.sleep(0.15)  # the thread prints now, between two calls
        assert host.call("wait").logs == b"call wait\n"


def test_logs_arrive_while_the_call_runs() -> None:
    """Output is live, not kept until the end."""
    with ShimHost(handler("print('begun', flush=True)\ntime.sleep(60)")) as host:
        host.ready().start_call()
        assert host.reader.read(5).body == b"begun\n"


def test_logs_exactly_at_the_cap_are_whole() -> None:
    """Nothing is cut that need not be."""
    with ShimHost(handler(f"os.write(1, b'x' * {LOG_BYTES})")) as host:
        answer = host.ready().call()
    assert answer.logs == b"x" * LOG_BYTES
    assert answer.cut is None


def test_logs_over_the_cap_are_cut_and_counted_for_each_call_anew() -> None:
    """The beginning is kept, the last log frame says how much is missing; the next call has its whole cap."""
    with ShimHost(handler("print('x' * event, end='')")) as host:
        host.ready(log_bytes=1000)
        for _ in range(2):
            answer = host.call(1500)
            assert answer.logs == b"x" * 1000
            assert answer.cut == {"truncated": True, "dropped_bytes": 500}
            assert answer.log_frames[-1] == (host.call_id, 0)
        answer = host.call(3)
        assert (answer.logs, answer.cut) == (b"xxx", None)


@pytest.mark.parametrize("line_bytes", [100, 1_000_000])
def test_a_flood_is_quick_and_takes_no_memory(line_bytes: int) -> None:
    """100 MB in lines or in blocks: seconds, not minutes; 256 KiB of it arrive; the rest is counted."""
    total = 100_000_000
    body = (
        f"line = 'x' * {line_bytes - 1}\n"
        f"for _ in range({total // line_bytes}): print(line)\n"
        "import resource\n"
        "return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    )
    with ShimHost(handler(body)) as host:
        began_s = time.monotonic()
        answer = host.ready().call(timeout_s=60)
        took_s = time.monotonic() - began_s
    assert len(answer.logs) == LOG_BYTES
    assert answer.cut == {"truncated": True, "dropped_bytes": total - LOG_BYTES}
    assert took_s < 50
    assert answer.json() * 1024 < 60e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 1e9


def test_a_flood_from_a_process_that_never_stops_does_not_hold_up_the_answer() -> None:
    """A child left behind that writes for ever: the answer comes, and says that the sandbox is done for."""
    with ShimHost(handler("subprocess.Popen(['yes'])\ntime.sleep(0.2)\nreturn 1")) as host:
        answer = host.ready().call()
        assert answer.json() == 1
        assert answer.meta["reusable"] is False
        assert answer.cut is not None


def test_a_crash_over_the_cap_still_says_how_much_is_missing() -> None:
    """The keeper goes on counting where the worker stopped."""
    with ShimHost(handler("os.write(1, b'x' * 1500)\nos.write(1, b'y' * 100)\nos._exit(1)")) as host:
        last = host.ready(log_bytes=1000).call()
    assert last.meta == {"status": 1, "signal": None}
    assert last.logs == b"x" * 1000
    assert last.cut == {"truncated": True, "dropped_bytes": 600}


def test_nothing_printed_before_a_crash_is_lost() -> None:
    """The last lines before a crash are the ones that are needed."""
    with ShimHost(handler("for n in range(5): print(f'line {n}')\nos.kill(os.getpid(), 9)")) as host:
        last = host.ready().call()
    assert last.meta == {"status": None, "signal": 9}
    assert last.logs == b"".join(b"line %d\n" % n for n in range(5))


def test_streams_that_user_code_replaced_do_not_stop_its_answer() -> None:
    """The shim flushes whatever is there and shrugs at its failure."""
    with ShimHost(handler("print('kept')\nsys.stdout = sys.stderr = event\nreturn 1")) as host:
        answer = host.ready().call("no stream")
        assert (answer.json(), answer.logs) == (1, b"kept\n")
        assert host.call("no stream").meta["message"]
