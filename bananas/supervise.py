"""Run a handful of parts as one: start in order, know when each is ready, restart, stop in order.

Decides when a part starts, whether it counts as ready, what happens when it ends, and that nothing stays behind.
Knows nothing of what the parts do; ``bananas.stack`` names them. One thread runs the loop and starts every part (see
``bananas.process`` for why), and nothing in it blocks for longer than a readiness check or the start of our Redis.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from bananas.errors import BananasError
from bananas.process import Lines, Part, Program, describe

READ_BYTES = 64 * 1024
#: Between two readiness checks of a part that has said it is up; its output and its end are noticed at once.
CHECK_S = 0.1
#: How soon an exit is noticed where the kernel has no pidfd.
POLL_S = 0.25
BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 10.0
#: A part that lived this long starts with a short backoff again.
STABLE_S = 30.0
#: From SIGKILL to the end; longer means that the kernel itself is stuck on it.
KILL_S = 10.0
#: Of what an ended part has left to say; more only comes when someone else still writes into its pipe.
LAST_READS = 64
#: What a shell answers for a program that it cannot start.
NOT_STARTED = 127


class _State(Enum):
    WAITING = "waiting"  # for what it needs, or for the end of its backoff
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"  # asked to end, to be started again at once
    OVER = "over"  # a task that has ended, or stopped


@dataclass(eq=False, slots=True)
class _Unit:
    part: Part
    needs: tuple[str, ...]
    #: Called with the exit status of a task; None for what must run for ever.
    on_end: Callable[[int], None] | None
    state: _State = _State.WAITING
    due_at_s: float = 0.0
    started_at_s: float = 0.0
    #: Ends since it was last stable.
    failures: int = 0
    lines: Lines = field(default_factory=Lines)
    pidfd: int | None = None
    output: int | None = None

    @property
    def is_running(self) -> bool:
        return self.state in (_State.STARTING, _State.READY, _State.RESTARTING)


class Supervisor:
    """Runs parts until ``stop``. All but ``stop``, ``post`` and ``ready`` belongs to the thread that calls ``run``."""

    def __init__(self, emit: Callable[[str], None], on_ready: Callable[[], None] | None = None) -> None:
        """``emit`` takes one finished line (an OSError from it ends the run); ``on_ready`` is called once."""
        #: Set when every part has become ready for the first time.
        self.ready = threading.Event()
        #: Why ``run`` returned 1.
        self.problem = ""
        self._emit = emit
        self._on_ready = on_ready
        self._units: list[_Unit] = []
        self._stops = 0
        self._posted: deque[Callable[[], None]] = deque()
        #: Names of parts to restart, one after the other.
        self._restarts: deque[str] = deque()
        self._mute = False
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def add(self, part: Part, needs: Sequence[str] = (), on_end: Callable[[int], None] | None = None) -> None:
        """Start it once all of ``needs`` are ready. Parts stop in the opposite order of being added.

        With ``on_end`` it is a task: it ends by itself and is not restarted.
        """
        self._units.append(_Unit(part, tuple(needs), on_end))

    def stop(self) -> None:
        """End the run: in order, with deadlines; a second call kills. From any thread or a signal handler."""
        self._stops += 1
        self._wake()

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop call it soon. From any thread."""
        self._posted.append(call)
        self._wake()

    def restart(self, names: Sequence[str]) -> None:
        """Restart parts one after the other, each with its full time to stop; the next begins when one is ready."""
        self._restarts.extend(name for name in names if name not in self._restarts)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: it is over
            self._waker.send(b"!")

    def say(self, line: str, name: str = "bananas") -> None:
        """Print one line under a name."""
        if self._mute:
            return
        width = max(7, *(len(unit.part.name) for unit in self._units)) if self._units else 7
        try:
            self._emit(f"{name:<{width}} | {line}" if name else line)
        except OSError:  # nobody reads any more (`bananas dev | head`): there is nobody to run for
            self._mute = True
            self.stop()

    def run(self) -> int:
        """Returns 0 after ``stop``, 1 when a part did not become ready at first (see ``problem``)."""
        try:
            while not self._stops and not self.problem:
                self._turn()
        finally:
            for unit in self._units[::-1]:
                self._stop_unit(unit)
            self.close()
        return 1 if self.problem else 0

    def close(self) -> None:
        """Release what waiting needs; ``run`` does it at its end. Idempotent."""
        self._selector.close()
        self._woken.close()
        self._waker.close()

    def _turn(self) -> None:
        while self._posted:
            self._posted.popleft()()
        self._restart_next()
        now_s = time.monotonic()
        for unit in self._startable():
            if unit.due_at_s <= now_s:
                self._start(unit)
        self._wait(self._pause_s(now_s))
        for unit in list(self._units):
            if unit.is_running:
                self._look(unit)
        if not self.ready.is_set() and all(unit.state is _State.READY for unit in self._units):
            self.ready.set()
            if self._on_ready:
                self._on_ready()

    def _restart_next(self) -> None:
        """Ask the next part to end, unless another one is on its way down or up."""
        if not self._restarts or any(unit.state in (_State.RESTARTING, _State.STARTING) for unit in self._units):
            return
        name = self._restarts.popleft()
        for unit in self._units:
            if unit.part.name == name and unit.state is _State.READY:
                self.say(f"restarting {name}")
                unit.state = _State.RESTARTING
                unit.due_at_s = time.monotonic() + unit.part.stop_s
                unit.part.terminate()

    def _startable(self) -> list[_Unit]:
        """What has all it needs and waits at most for its backoff."""
        ready = {unit.part.name for unit in self._units if unit.state is _State.READY}
        return [unit for unit in self._units if unit.state is _State.WAITING and ready.issuperset(unit.needs)]

    def _pause_s(self, now_s: float) -> float | None:
        """Until something is due; None means until something happens."""
        pauses = [unit.due_at_s - now_s for unit in self._startable()]
        running = [unit for unit in self._units if unit.is_running]
        if any(unit.state is _State.STARTING for unit in running):
            pauses.append(CHECK_S)
        if any(unit.pidfd is None for unit in running):
            pauses.append(POLL_S)
        pauses += [unit.due_at_s - now_s for unit in running if unit.state is _State.RESTARTING]
        if self._restarts and not any(unit.state in (_State.RESTARTING, _State.STARTING) for unit in running):
            pauses.append(0.0)
        return max(0.0, min(pauses)) if pauses else None

    def _start(self, unit: _Unit) -> None:
        unit.started_at_s = time.monotonic()
        unit.lines = Lines()
        try:
            unit.part.start()
        except (BananasError, OSError) as e:
            self._failed(unit, f"did not start: {e}")
            return
        unit.state = _State.READY if unit.on_end else _State.STARTING
        unit.output = unit.part.output
        if unit.output is not None:
            self._selector.register(unit.output, selectors.EVENT_READ, unit)
        pid = unit.part.pid
        if pid is not None and sys.platform == "linux":
            with contextlib.suppress(OSError):  # an old kernel, or it has ended already: then POLL_S notices
                unit.pidfd = os.pidfd_open(pid)
                self._selector.register(unit.pidfd, selectors.EVENT_READ, unit)

    def _wait(self, timeout_s: float | None) -> None:
        """Wait for output, an exit or ``stop``, and print what came."""
        for key, _ in self._selector.select(timeout_s):
            unit = key.data
            if not isinstance(unit, _Unit):
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(100)
            elif key.fd == unit.pidfd:
                self._forget_pidfd(unit)  # it stays readable, and would wake us until someone polls that part
            else:
                self._pump(unit)

    def _pump(self, unit: _Unit) -> bool:
        """Print one read of a part's output; False when there is nothing more for now."""
        if unit.output is None:
            return False
        try:
            data = os.read(unit.output, READ_BYTES)
        except BlockingIOError:
            return False
        for line in unit.lines.feed(data) if data else unit.lines.flush():
            unit.part.saw(line)
            self.say(line, unit.part.name)
        if not data:
            self._selector.unregister(unit.output)
            unit.output = None
        return bool(data)

    def _look(self, unit: _Unit) -> None:
        status = unit.part.poll()
        if status is not None:
            self._release(unit)
            if unit.on_end is not None:
                self._task_over(unit, unit.on_end, status)
            elif unit.state is _State.RESTARTING:
                unit.state, unit.due_at_s = _State.WAITING, 0.0
            else:
                self._failed(unit, f"ended with {describe(status)}")
        elif unit.state is _State.RESTARTING:
            if time.monotonic() > unit.due_at_s:
                self.say(f"{unit.part.name} did not end within {unit.part.stop_s:g} s; killing it")
                self._end(unit)
                unit.state, unit.due_at_s = _State.WAITING, 0.0
        elif unit.state is _State.STARTING:
            if unit.part.is_ready():
                unit.state = _State.READY
                if self.ready.is_set():
                    self.say(f"{unit.part.name} runs again")
            elif time.monotonic() > unit.started_at_s + unit.part.start_s:
                self._end(unit)
                self._failed(unit, f"was not ready within {unit.part.start_s:g} s")

    def _failed(self, unit: _Unit, what: str) -> None:
        if unit.on_end is not None:
            self.say(f"{unit.part.name} {what}")
            self._task_over(unit, unit.on_end, NOT_STARTED)
            return
        if not self.ready.is_set():
            unit.state = _State.OVER
            self.problem = self.problem or f"{unit.part.name} {what}"
            return
        now_s = time.monotonic()
        if now_s - unit.started_at_s >= STABLE_S:
            unit.failures = 0
        delay_s = min(BACKOFF_FIRST_S * 2**unit.failures, BACKOFF_LAST_S)
        unit.failures = min(unit.failures + 1, 16)
        unit.state = _State.WAITING
        unit.due_at_s = now_s + delay_s
        self.say(f"{unit.part.name} {what}; starting it again in {delay_s:g} s")

    def _task_over(self, unit: _Unit, on_end: Callable[[int], None], status: int) -> None:
        unit.state = _State.OVER
        self._units.remove(unit)
        on_end(status)

    def _stop_unit(self, unit: _Unit) -> None:
        if unit.is_running:
            self.say(f"stopping {unit.part.name}")
            unit.part.terminate()
            deadline_s = time.monotonic() + unit.part.stop_s
            while unit.part.poll() is None and self._stops < 2:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    self.say(f"{unit.part.name} did not end within {unit.part.stop_s:g} s; killing it")
                    break
                self._wait(min(left_s, POLL_S if unit.pidfd is None else left_s))
            self._end(unit)
        unit.state = _State.OVER

    def _end(self, unit: _Unit) -> None:
        """Kill what still runs of it, wait for that, and print its last lines."""
        deadline_s = time.monotonic() + KILL_S
        unit.part.kill()
        while unit.part.poll() is None and time.monotonic() < deadline_s:
            self._wait(CHECK_S)
        if unit.part.poll() is None:
            self.say(
                f"{unit.part.name} (process {unit.part.pid}) does not end, not even by SIGKILL; the kernel holds it"
            )
        self._release(unit)

    def _release(self, unit: _Unit) -> None:
        reads = 0
        while self._pump(unit) and reads < LAST_READS:
            reads += 1
        for line in unit.lines.flush():
            self.say(line, unit.part.name)
        if unit.output is not None:
            self._selector.unregister(unit.output)
            unit.output = None
        self._forget_pidfd(unit)
        if isinstance(unit.part, Program):
            unit.part.close()

    def _forget_pidfd(self, unit: _Unit) -> None:
        if unit.pidfd is not None:
            self._selector.unregister(unit.pidfd)
            os.close(unit.pidfd)
            unit.pidfd = None
