"""How a sandbox ends: by order, by its runner's death, by what user code does to it; and what is heard of it."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time

import pytest

from bananas.errors import SandboxDied
from runner import framing
from tests.contract.shim_host import ShimHost

#: For what is at once here: the code in these sandboxes goes on for a minute, or for ever.
SOON_S = 20.0
#: Takes for ever and never gives up the interpreter.
HOLD_THE_GIL = "re.match(r'(a+)+$', 'a' * 64 + 'b')"


def handler(body: str) -> str:
    head = "import ctypes, os, re, signal, subprocess, sys, threading, time\ndef handle(event, context):\n    "
    return head + body.replace("\n", "\n    ") + "\n"


def gone_within(pid: int, timeout_s: float) -> bool:
    """True when the process ends in time; woken by its end, not by a clock."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


@pytest.mark.parametrize("body", [HOLD_THE_GIL, "time.sleep(60)", "while True: pass", "ctypes.PyDLL(None).sleep(60)"])
def test_the_order_to_end_kills_a_busy_worker_at_once(body: str) -> None:
    """Also C code that holds the interpreter; its last output and the exit frame still arrive, then the stream ends."""
    with ShimHost(handler(f"print('started')\ntime.sleep(0.05)\nprint('busy')\n{body}")) as host:
        host.ready()
        call_id = host.start_call()
        frame = host.reader.read(10)
        assert (frame.kind, frame.call_id, frame.body) == (framing.LOG, call_id, b"started\n")
        time.sleep(0.2)  # nothing tells from outside that code is in C now
        began_s = time.monotonic()
        last = host.end()
        assert time.monotonic() - began_s < SOON_S
        assert last.logs == b"busy\n"
        assert last.frame == framing.Frame(framing.EXIT, 0, {"status": None, "signal": 9, "ordered": True}, b"")
        with pytest.raises(SandboxDied):
            host.reader.read(5)
        assert host.process is not None
        assert host.process.wait(5) == 128 + signal.SIGKILL


def test_the_order_to_end_ends_an_idle_worker() -> None:
    """The usual end of a sandbox."""
    with ShimHost(handler("return 1")) as host:
        host.ready().call()
        assert host.end().meta == {"status": None, "signal": 9, "ordered": True}


def test_an_unbound_stem_can_be_ended() -> None:
    """Before any init, too."""
    with ShimHost() as host:
        assert host.end().frame.kind == framing.EXIT


@pytest.mark.parametrize("body", [HOLD_THE_GIL, "time.sleep(60)"])
def test_a_runner_that_disappears_takes_the_worker_along(body: str) -> None:
    """No sandbox works on for a runner that is dead."""
    with ShimHost(handler(f"print(os.getpid())\ntime.sleep(0.05)\n{body}")) as host:
        host.ready().start_call()
        worker = int(host.reader.read(10).body)
        assert host.channel is not None
        host.channel.close()
        assert gone_within(worker, SOON_S)
        assert host.process is not None
        host.process.wait(SOON_S)


def test_what_the_worker_started_in_its_group_dies_with_it() -> None:
    """A handler's subprocesses do not outlive the sandbox."""
    with ShimHost(handler("print(subprocess.Popen(['sleep', '60']).pid, flush=True)\ntime.sleep(60)")) as host:
        host.ready().start_call()
        child = int(host.reader.read(10).body)
        host.end()
        assert gone_within(child, SOON_S)


def test_exiting_in_the_middle_of_a_call_is_reported_with_status_and_logs() -> None:
    """os._exit: what was printed before arrives, then the exit frame."""
    with ShimHost(handler("print('before', flush=True)\nos.write(2, b'also')\nos._exit(3)")) as host:
        last = host.ready().call()
        assert last.frame == framing.Frame(framing.EXIT, 0, {"status": 3, "signal": None}, b"")
        assert last.logs == b"before\nalso"
        assert {call_id for call_id, _ in last.log_frames} == {host.call_id}
        assert host.process is not None
        assert host.process.wait(5) == 3


def test_exiting_while_loading_is_reported_too() -> None:
    """os._exit at import."""
    with ShimHost("import os\nprint('loading')\nos.write(1, b'x')\nos._exit(4)\n") as host:
        last = host.init()
    assert last.meta == {"status": 4, "signal": None}
    assert last.logs == b"loading\nx"


def test_a_segmentation_fault_is_reported_with_the_place_of_the_crash() -> None:
    """Signal 11 in the exit frame, and in the logs where it happened."""
    with ShimHost(handler("print('before')\nctypes.string_at(0)")) as host:
        last = host.ready().call()
        assert last.meta == {"status": None, "signal": signal.SIGSEGV}
        text = last.logs.decode()
        assert text.startswith("before\nFatal Python error: Segmentation fault")
        assert f'File "{host.root}/code/handler.py", line 4 in handle' in text


def test_a_crash_of_an_idle_worker_is_heard_of() -> None:
    """A thread that a call left behind brings the worker down between two calls."""
    with ShimHost(handler("threading.Timer(0.05, os._exit, [9]).start()\nreturn 1")) as host:
        assert host.ready().call().json() == 1
        last = host.answer()
        assert last.meta == {"status": 9, "signal": None}
        assert last.log_frames == []


@pytest.mark.parametrize(
    "body",
    [
        "os.closerange(3, 65536)",  # with it the protocol's socket
        "os.closerange(0, 65536)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.abort()",
        "os.killpg(0, signal.SIGKILL)",
    ],
)
def test_code_that_attacks_its_own_process_only_ends_its_own_sandbox(body: str) -> None:
    """The keeper survives and reports the end."""
    with ShimHost(handler(body)) as host:
        last = host.ready().call()
        assert last.frame.kind == framing.EXIT
        assert last.meta.get("status") or last.meta.get("signal")


def test_code_that_kills_the_keeper_is_seen_as_the_end_of_the_stream() -> None:
    """In a container the whole sandbox goes with it; here the worker notices when the runner hangs up."""
    with ShimHost(handler("os.kill(os.getppid(), signal.SIGKILL)\nos._exit(0)")) as host:
        host.ready().start_call()
        with pytest.raises(SandboxDied):
            host.answer(5)


@pytest.mark.parametrize("fds", ["os.closerange(3, 256)", "os.close(1), os.close(2)", "sys.stdout.close()"])
def test_code_that_closes_usual_descriptors_gets_its_answer(fds: str) -> None:
    """Our descriptors are out of the way of what daemon libraries do."""
    with ShimHost(handler(f"{fds}\nreturn 'fine'")) as host:
        assert host.ready().call().json() == "fine"
        assert host.end().frame.kind == framing.EXIT


def test_programs_started_by_user_code_do_not_get_our_descriptors() -> None:
    """Not even when they are started without closing anything."""
    body = "return subprocess.run(['ls', '/proc/self/fd'], close_fds=False, capture_output=True, text=True).stdout"
    with ShimHost(handler(body)) as host:
        fds = {int(fd) for fd in host.ready().call().json().split()}
    assert max(fds) < 10


def test_a_forked_child_has_no_connection_to_the_runner() -> None:
    """A process that user code forks holds neither the protocol's socket nor keeps it open."""
    body = (
        "mine = len([f for f in os.listdir('/proc/self/fd') if socket_of(f)])\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.write(w, b'%d' % len([f for f in os.listdir('/proc/self/fd') if socket_of(f)]))\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "return [mine, int(os.read(r, 9))]"
    )
    source = (
        "import os\n"
        "def socket_of(f):\n"
        "    try: return 'socket:' in os.readlink(f'/proc/self/fd/{f}')\n"
        "    except OSError: return False\n"
    )
    with ShimHost(source + handler(body)) as host:
        assert host.ready().call().json() == [1, 0]


def test_the_kernel_prefers_user_code_to_the_keeper_when_memory_runs_out() -> None:
    """So that somebody is left to report it."""
    with ShimHost(
        handler("return [int(open(f'/proc/{p}/oom_score_adj').read()) for p in ('self', os.getppid())]")
    ) as h:
        worker, keeper = h.ready().call().json()
    assert worker > keeper


def test_boot_data_of_another_protocol_ends_the_sandbox_with_the_reason() -> None:
    """A shim that does not fit its runner says so instead of waiting."""
    host = ShimHost()
    host.write("boot.json", '{"protocol": 2, "egress": []}')
    with host:
        last = host.answer()
        assert last.frame.kind == framing.EXIT
        assert (last.meta["status"], last.meta["reason"]) == (78, "boot.json has protocol 2, not 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process id namespace, as in a container")
def test_detached_processes_end_the_reuse_as_well() -> None:
    """A daemon that gave itself to init is found there. As in a container, init is process 1, the keeper its child."""
    body = (
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.execvp('sleep', ['sleep', '60'])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "return 1"
    )
    init = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"]
    with ShimHost(handler("if event: return 1\n" + body), command=[*init, sys.executable]) as host:
        host.ready()
        assert host.call(1).meta.get("reusable", True)
        meta = host.call().meta
        assert (meta["reusable"], meta["why_not"]) == (False, "left detached processes running")
        assert host.end().frame.kind == framing.EXIT


def test_nothing_of_the_shim_is_in_sight_of_user_code() -> None:
    """The path that user code imports from is its own and the interpreter's."""
    body = "return [sys.path, sys.argv, [p for p in os.environ if 'BANANA' in p.upper()]]"
    with ShimHost(handler(body)) as host:
        path, argv, env = host.ready().call().json()
        assert path[0] == str(host.root / "code")
        assert not [p for p in path if re.search("shim", p)]
        assert (argv, env) == ([""], [])
