"""The supervisor with real children: order, readiness, restarts, logs, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananas import process, supervise
from bananas.process import LINE_BYTES, Lines, Program
from bananas.supervise import Supervisor

WAIT_S = 15.0
SERVE = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
)
#: Starts its first argument as a child of its own.
WITH_WORKER = (
    "import subprocess, sys\nworker = subprocess.Popen([sys.executable, '-S', '-c', sys.argv[1]])\n"
    "print('worker', worker.pid, flush=True)"
)


class Running:
    """A supervisor in a thread of its own, and what it printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.supervisor = Supervisor(self._emit)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self.code = self.supervisor.run()
        with self._news:
            self._news.notify_all()

    def _emit(self, line: str) -> None:
        with self._news:
            self.lines.append(line)
            self._news.notify_all()

    def wait_line(self, part: str, count: int = 1) -> str:
        """The ``count``-th line with ``part`` in it."""

        def found() -> list[str]:
            return [line for line in self.lines if part in line]

        with self._news:
            assert self._news.wait_for(lambda: len(found()) >= count, WAIT_S), (part, self.lines)
            return found()[count - 1]

    def stop(self) -> int | None:
        self.supervisor.stop()
        return self.join()

    def join(self) -> int | None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.code


@pytest.fixture
def running() -> Iterator[Running]:
    """A supervisor without parts, not started; stopped at the end."""
    running = Running()
    yield running
    if running._thread.ident is not None:
        running.supervisor.stop()
        running.supervisor.stop()
        running.join()
    else:
        running.supervisor.close()


def program(name: str, code: str, *args: str, **options: object) -> Program:
    return Program(name, [sys.executable, "-S", "-c", code, *args], dict(os.environ), **options)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    """False for a zombie too: its process is over."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Callable[[], bool], what: str) -> None:
    """For facts of other processes, which send no event."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_part_starts_only_when_what_it_needs_is_ready(running: Running) -> None:
    """Order comes from readiness (line, then check), not from time."""
    allowed = threading.Event()
    first = program("first", SERVE, ready_line="up", check=allowed.is_set)
    running.supervisor.add(first)
    running.supervisor.add(program("second", SERVE, ready_line="up"), needs=["first"])
    running.start()
    running.wait_line("first   | up")
    assert not running.supervisor.ready.is_set()
    assert not [line for line in running.lines if line.startswith("second")]
    allowed.set()
    running.wait_line("second  | up")
    assert running.supervisor.ready.wait(WAIT_S)
    assert running.stop() == 0
    stops = [line for line in running.lines if "stopping" in line]
    assert [line.split()[-1] for line in stops] == ["second", "first"]


def test_lines_of_noisy_parts_do_not_mix(running: Running) -> None:
    """Every printed line belongs to one part, whole and in order, stderr included."""
    code = (
        "import sys\nfor n in range(2000): print(sys.argv[1] * 50, n, file=(sys.stdout, sys.stderr)[n % 2])\n"
        "print('done')"
    )
    ended = threading.Barrier(3)
    for letter in "ab":
        running.supervisor.add(
            program(letter, code, letter), on_end=lambda status: threading.Thread(target=ended.wait).start()
        )
    running.supervisor.add(program("idle", SERVE))
    running.start()
    ended.wait(WAIT_S)
    running.stop()
    for letter in "ab":
        mine = [line.split(" | ", 1)[1] for line in running.lines if line.startswith(f"{letter} ")]
        assert mine == [f"{letter * 50} {n}" for n in range(2000)] + ["done"]


def test_control_characters_of_a_part_do_not_reach_the_terminal(running: Running) -> None:
    """A log line cannot move the cursor, ring, or forge another part's prefix."""
    running.supervisor.add(
        program("x", r"print('\x1b[31mred\x1b[0m \x07\rgateway | forged')"), on_end=lambda status: None
    )
    running.supervisor.add(program("idle", SERVE))
    running.start()
    assert running.wait_line("red") == "x       | red gateway | forged"


def test_a_part_that_dies_is_started_again_with_growing_pauses(running: Running) -> None:
    """After the stack was ready, an end is repaired; the pause doubles from half a second."""
    part = program("part", SERVE, ready_line="up")
    running.supervisor.add(part)
    running.start()
    assert running.supervisor.ready.wait(WAIT_S)
    for n, pause in ((1, "0.5 s"), (2, "1 s")):
        pid = part.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert running.wait_line("part ended with signal SIGKILL", n).endswith(f"starting it again in {pause}")
        running.wait_line("part runs again", n)
        assert part.pid not in (None, pid)
    assert running.stop() == 0


def test_a_part_that_cannot_start_at_first_ends_the_run(running: Running) -> None:
    """A wrong setting is told once, with the part's own words, instead of being retried for ever."""
    fine = program("fine", SERVE, ready_line="up")
    running.supervisor.add(fine)
    running.supervisor.add(program("broken", "print('no such thing'); raise SystemExit(3)", ready_line="up"), ["fine"])
    running.start()
    assert running.join() == 1
    assert running.supervisor.problem == "broken ended with status 3"
    assert "broken  | no such thing" in running.lines
    assert fine.pid is None
    assert not running.supervisor.ready.is_set()


def test_a_part_that_never_becomes_ready_ends_the_run_at_its_deadline(running: Running) -> None:
    """Readiness has a deadline, and the child that missed it is gone."""
    part = program("slow", SERVE, ready_line="never said", start_s=0.3)
    running.supervisor.add(part)
    running.start()
    assert running.join() == 1
    assert running.supervisor.problem == "slow was not ready within 0.3 s"
    assert part.pid is None


def test_a_program_that_does_not_exist_is_named(running: Running) -> None:
    """The name of the missing program is in the log."""
    running.supervisor.add(Program("ghost", ["/no/such/program"], dict(os.environ), ready_line="up"))
    running.start()
    assert running.join() == 1
    assert any("/no/such/program" in line for line in running.lines)


def test_a_part_that_ignores_sigterm_is_killed_with_its_group(running: Running) -> None:
    """Stopping has a deadline; children of the child go too."""
    part = program("part", f"{WITH_WORKER}\n{STUBBORN}", STUBBORN, ready_line="up", stop_s=0.3)
    running.supervisor.add(part)
    running.start()
    assert running.supervisor.ready.wait(WAIT_S)
    pids = [int(running.wait_line("worker ").split()[-1]), part.pid]
    assert running.stop() == 0
    assert any("did not end within 0.3 s; killing it" in line for line in running.lines)
    for pid in pids:
        assert pid is not None
        wait_until(lambda pid=pid: not is_alive(pid), f"process {pid} is left")  # type: ignore[misc]


def test_a_second_stop_does_not_wait_for_the_grace(running: Running) -> None:
    """Ctrl-C twice ends everything at once."""
    running.supervisor.add(program("part", STUBBORN, ready_line="up", stop_s=3600))
    running.start()
    assert running.supervisor.ready.wait(WAIT_S)
    running.supervisor.stop()
    running.wait_line("stopping part")
    assert running.stop() == 0


def test_restarts_go_one_after_the_other(running: Running) -> None:
    """The next part ends only when the one before is ready again; names that mean nothing change nothing."""
    parts = [program(name, SERVE, ready_line="up") for name in ("one", "two")]
    for part in parts:
        running.supervisor.add(part)
    running.start()
    assert running.supervisor.ready.wait(WAIT_S)
    pids = [part.pid for part in parts]
    running.supervisor.post(lambda: running.supervisor.restart(["one", "nobody", "two", "one"]))
    running.wait_line("two runs again")
    told = [line.partition("| ")[2] for line in running.lines if "restarting" in line or "runs again" in line]
    assert told == ["restarting one", "one runs again", "restarting two", "two runs again"]
    assert not any(is_alive(pid) for pid in pids if pid is not None)
    assert all(part.pid not in (None, pid) for part, pid in zip(parts, pids, strict=True))


def test_a_part_that_does_not_end_for_its_restart_is_killed(running: Running) -> None:
    """Restarting has the deadline of stopping, and then goes on."""
    part = program("part", STUBBORN, ready_line="up", stop_s=0.3)
    running.supervisor.add(part)
    running.start()
    assert running.supervisor.ready.wait(WAIT_S)
    before = part.pid
    running.supervisor.post(lambda: running.supervisor.restart(["part"]))
    running.wait_line("part did not end within 0.3 s; killing it")
    running.wait_line("part runs again")
    assert before is not None
    assert part.pid != before
    assert not is_alive(before)


def test_what_a_part_leaves_in_its_group_ends_with_it(running: Running) -> None:
    """A master that dies does not leave workers that hold its port."""
    part = program("part", f"{WITH_WORKER}\n{SERVE}", STUBBORN, ready_line="up")
    running.supervisor.add(part)
    running.start()
    assert running.supervisor.ready.wait(WAIT_S)
    worker = int(running.wait_line("worker ").split()[-1])
    assert part.pid is not None
    os.kill(part.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker), "the worker outlived its master")


def test_a_task_reports_its_status_and_is_not_restarted(running: Running) -> None:
    """One-shot programs run beside the parts; one that cannot be started counts as status 127."""
    statuses: dict[str, int] = {}
    done = threading.Event()

    def ended(name: str) -> Callable[[int], None]:
        def note(status: int) -> None:
            statuses[name] = status
            if len(statuses) == 2:
                done.set()

        return note

    running.supervisor.add(program("part", SERVE, ready_line="up"))
    running.supervisor.add(program("seven", "raise SystemExit(7)"), on_end=ended("seven"))
    nowhere = Program("nowhere", ["true"], {}, cwd=Path("/no/such/folder"))
    running.supervisor.add(nowhere, on_end=ended("nowhere"))
    running.start()
    assert done.wait(WAIT_S)
    assert statuses == {"seven": 7, "nowhere": supervise.NOT_STARTED}
    assert running.supervisor.ready.wait(WAIT_S)


def test_a_reader_that_goes_away_ends_the_run() -> None:
    """With nobody left to read the log, everything stops instead of failing on each line."""

    def emit(line: str) -> None:
        raise BrokenPipeError

    supervisor = Supervisor(emit)
    part = program("part", SERVE, ready_line="up")
    supervisor.add(part)
    assert supervisor.run() == 0
    assert part.pid is None


def test_stop_after_the_end_does_nothing(running: Running) -> None:
    """A late signal handler harms nobody."""
    running.supervisor.add(program("part", SERVE, ready_line="up"))
    running.start()
    assert running.stop() == 0
    running.supervisor.stop()


def test_waiting_costs_no_cpu(running: Running) -> None:
    """Nothing is polled while nothing happens, not even while a dead part waits behind one that is slow to stop."""
    dead = program("dead", SERVE, ready_line="up")
    running.supervisor.add(dead)
    running.supervisor.add(program("slow", STUBBORN, ready_line="up", stop_s=1.0))
    running.start()
    assert running.supervisor.ready.wait(WAIT_S)
    running.supervisor.stop()
    running.wait_line("stopping slow")
    before_s = time.process_time()
    assert dead.pid is not None
    os.kill(dead.pid, signal.SIGKILL)
    running.join()
    assert time.process_time() - before_s < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_children_end_when_the_supervisor_is_killed() -> None:
    """Nothing survives a SIGKILL of the supervisor, workers of a child that ends properly included."""
    code = (
        "import os, sys\nfrom bananas.process import Program\nfrom bananas.supervise import Supervisor\n"
        f"part = Program('part', [sys.executable, '-S', '-c', {SERVE!r}], dict(os.environ), ready_line='up')\n"
        "s = Supervisor(lambda line: None, lambda: print(part.pid, flush=True))\ns.add(part)\ns.run()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        owner.kill()
        owner.wait(WAIT_S)
        wait_until(lambda: not is_alive(pid), "the child outlived its supervisor")


@given(st.lists(st.binary(max_size=40)), st.integers(1, 7))
def test_cutting_the_stream_elsewhere_gives_the_same_lines(pieces: list[bytes], size: int) -> None:
    """Lines depend on the bytes, not on how the pipe delivered them."""
    data = b"".join(pieces)
    whole, small = Lines(), Lines()
    expected = whole.feed(data) + whole.flush()
    assert [
        line for i in range(0, len(data), size) for line in small.feed(data[i : i + size])
    ] + small.flush() == expected


def test_a_line_without_end_is_printed_in_bounded_pieces() -> None:
    """No child can make the supervisor keep more than one piece."""
    lines = Lines()
    pieces = lines.feed(b"x" * (3 * LINE_BYTES + 5))
    assert [len(piece) for piece in pieces] == [LINE_BYTES] * 3
    assert lines.feed(b"\n") == ["x" * 5]
    assert lines.feed(b"y" * (LINE_BYTES + 1) + b"\n") == ["y" * LINE_BYTES, "y"]


def test_statuses_are_told_in_words() -> None:
    """Exit status and signal look different."""
    assert [process.describe(s) for s in (0, 3, -9, -999)] == ["status 0", "status 3", "signal SIGKILL", "signal 999"]
