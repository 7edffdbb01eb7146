"""The keeper: the parent process in a sandbox. No user code ever runs in it, so it still acts when user code hangs.

It forks the worker before user code loads and then waits for three things, without ever reading the runner's frames:

- the runner hangs up (its order to end, or its death): the worker is killed at once, whatever it is doing;
- the worker is dead: its last output and how it ended go to the runner, and the sandbox is over;
- traffic of the egress forwarder, which lives here.

It does not make itself a subreaper: the container's init already is one, and is where ``children.py`` looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from . import loop, shared, wire

SOFTWARE, CONFIG = 70, 78  # exit statuses after sysexits.h
#: The kernel may need a while to end a process that it has been told to kill.
KILL_TIMEOUT_S = 5.0
#: From the last byte of a large frame to the worker's note of it.
SENT_TIMEOUT_S = 0.02
#: The runner reads all the time; one that does not take the last words in this time does not want them.
SEND_TIMEOUT_S = 2.0
#: Where the kernel counts what it killed for memory, with cgroups of version 2 and 1.
OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def main(root: str) -> int:
    """Run the sandbox until it is over; returns the status to exit with: the worker's, or 128 + its signal."""
    with open(os.path.join(root, "boot.json"), encoding="utf-8") as file:
        boot = json.load(file)
    log_pipe = os.pipe()
    os.set_blocking(log_pipe[0], False)
    events = loop.Loop()
    reason = "" if boot["protocol"] == wire.PROTOCOL else f"boot.json has protocol {boot['protocol']}, not 1"
    forwarder = None
    if boot["egress"] and not reason:
        from . import forwarder as module

        try:
            most = boot.get("egress_connections", module.MAX_CONNECTIONS)
            forwarder = module.Forwarder(events, os.path.join(root, "e"), boot["egress"], log_pipe[1], most)
        except OSError as e:
            reason = f"egress: {e}"
    # Connecting tells the runner that the sandbox is ready, so it comes last.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.path.join(root, "s"))
    if reason:
        sock.sendall(wire.encode(wire.EXIT, 0, _exit_meta(CONFIG, None, reason=reason), b""))
        return CONFIG
    wakeup = os.pipe()
    for fd in wakeup:
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler, the wake-up descriptor would stay silent
    signal.set_wakeup_fd(wakeup[1], warn_on_full_buffer=False)
    state = shared.create()
    # A bridge (shim/stdio) stands between the keeper and the container's init.
    above = (os.getppid(), 1) if boot.get("bridge") else (os.getpid(), os.getppid())
    pid = os.fork()
    if pid == 0:
        events.close()
        for fd in wakeup:
            os.close(fd)
        if forwarder is not None:
            forwarder.abandon()
        _become_worker(root, sock, log_pipe, state, above)
    os.close(log_pipe[1])
    return Guard(events, sock, log_pipe[0], wakeup[0], state, pid).run()


def _become_worker(
    root: str, sock: socket.socket, log_pipe: tuple[int, int], state: memoryview, above: tuple[int, int]
) -> NoReturn:
    from . import children, worker

    worker.run(root, sock, log_pipe, state, children.Children(*above))


def _exit_meta(status: int | None, signal_number: int | None, **more: Any) -> bytes:
    return wire.encode_meta({"status": status, "signal": signal_number, **more})


def _has_run_out_of_memory() -> bool:
    """Has the kernel killed anything in this sandbox for memory? It counts before it kills, so a death that has been
    seen has been counted; the engine hears of it later, or never.
    """
    for path in OOM_COUNTERS:
        # Of the other version, or hidden: then the engine is the only one to know.
        with contextlib.suppress(OSError), open(path, "rb") as file:
            for line in file.read(4096).splitlines():
                name, _, count = line.partition(b" ")
                if name == b"oom_kill":
                    return count.strip() != b"0"
    return False


class Guard:
    """The keeper after the fork."""

    def __init__(
        self, events: loop.Loop, sock: socket.socket, log_fd: int, wakeup_fd: int, state: memoryview, pid: int
    ) -> None:
        self._loop = events
        self._sock = sock
        self._log_fd = log_fd
        self._wakeup_fd = wakeup_fd
        self._state = state
        self._pid = pid
        self._is_ordered = False
        self._is_over = False
        # The worker does the same: whoever is first, its group exists from now on.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)

    def run(self) -> int:
        """Wait for the end of the worker, however it comes; returns the status to exit with."""
        self._loop.watch(self._sock.fileno(), loop.HANGUP, self._on_hangup)
        self._loop.watch(self._wakeup_fd, loop.READ, self._on_child)
        while not self._is_over:
            self._loop.run_once()
        return self._finish()

    def _on_hangup(self) -> None:
        self._loop.forget(self._sock.fileno())
        self._is_ordered = not self._has_ended()
        if self._state[shared.SENDING]:
            # The runner may have the answer already, and the worker is about to note that. If not, it is no loss.
            self._loop.at(self._pid, SENT_TIMEOUT_S, self._end_worker)
        else:
            self._end_worker()

    def _end_worker(self) -> None:
        self._kill()
        self._loop.at(self._pid, KILL_TIMEOUT_S, self._give_up)

    def _on_child(self) -> None:
        os.read(self._wakeup_fd, 64)
        self._is_over = self._has_ended()

    def _give_up(self) -> None:
        self._is_over = True

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _kill(self) -> None:
        """The worker and all of its process group. It is not reaped before the end, so its number is still its own."""
        for kill in (os.killpg, os.kill):
            # No such group: user code left it.
            with contextlib.suppress(ProcessLookupError):
                kill(self._pid, signal.SIGKILL)

    def _finish(self) -> int:
        self._kill()  # what the worker started and left in its group
        pid, code = os.waitpid(self._pid, os.WNOHANG)
        status = os.WEXITSTATUS(code) if pid and os.WIFEXITED(code) else None
        signal_number = os.WTERMSIG(code) if pid and os.WIFSIGNALED(code) else None
        more = {"ordered": True} if self._is_ordered else {}
        if signal_number == signal.SIGKILL and not self._is_ordered and _has_run_out_of_memory():
            more["oom"] = True
        # After a broken frame nothing more can be understood: then the runner sees the end of the stream only.
        if not self._state[shared.SENDING]:
            self._sock.settimeout(SEND_TIMEOUT_S)
            try:
                self._send_logs()
                self._sock.sendall(wire.encode(wire.EXIT, 0, _exit_meta(status, signal_number, **more), b""))
            except OSError:
                pass  # the runner is gone or does not listen
        if status is not None:
            return status
        return 128 + signal_number if signal_number is not None else SOFTWARE

    def _send_logs(self) -> None:
        """What is left in the log pipe, which holds 64 KiB, within the call's cap."""
        from . import logs

        state = self._state
        call_id = state[shared.CALL]
        left = logs.pipe_bytes(self._log_fd)
        dropped = state[shared.DROPPED]
        room = state[shared.LOG_CAP] - state[shared.LOGGED]
        while left > 0:
            try:
                data = os.read(self._log_fd, min(left, wire.LOG_FRAME_BYTES))
            except BlockingIOError:
                break
            if not data:
                break
            left -= len(data)
            kept = min(len(data), room)
            room -= kept
            dropped += len(data) - kept
            if kept:
                self._sock.sendall(wire.encode(wire.LOG, call_id, b"{}", data[:kept]))
        if dropped:
            meta = wire.encode_meta({"truncated": True, "dropped_bytes": dropped})
            self._sock.sendall(wire.encode(wire.LOG, call_id, meta, b""))


if sys.platform != "linux":
    raise ImportError("the shim runs in Linux containers only")
