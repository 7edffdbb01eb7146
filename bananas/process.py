"""One child program: its process group, its log lines, its end. ``bananas.supervise`` runs several of them.

The kernel sends a child SIGTERM when the *thread* that started it ends (PR_SET_PDEATHSIG), so start it from one that
lives as long as the child should. Each gets a session of its own: Ctrl-C reaches only the supervisor, which stops
them one by one; and what a program leaves behind in its group is killed when it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

#: Longer lines are printed in pieces of this size.
LINE_BYTES = 8 * 1024

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0a-\x1f\x7f-\x9f]")
#: Runs in the child before the program: asks for SIGTERM at the parent's end. The parent may be gone before it asked.
_WRAPPER = """
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGTERM), 0, 0, 0):
    sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the supervisor is gone")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as e:
    sys.exit(f"{sys.argv[2]}: {e.strerror}")
"""


class Part(Protocol):
    """Something the supervisor can run: ``Program`` here, the Redis of ``bananas.stack``."""

    name: str
    #: Seconds from start to ready, and from ``terminate`` to ``kill``.
    start_s: float
    stop_s: float

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        ...

    @property
    def output(self) -> int | None:
        """A non-blocking descriptor with its log lines, or None when it logs elsewhere."""
        ...

    def start(self) -> None:
        """Start it; raises BananasError or OSError when that is not possible."""
        ...

    def saw(self, line: str) -> None:
        """Told of each line of its output."""
        ...

    def is_ready(self) -> bool:
        """Whether it can be used; asked repeatedly, must answer within about a second."""
        ...

    def poll(self) -> int | None:
        """None while it runs; else its exit status, or minus the signal. Leaves no process of its group behind."""
        ...

    def terminate(self) -> None:
        """Ask it to end. Idempotent."""
        ...

    def kill(self) -> None:
        """End it and its group at once; does not wait. Idempotent."""
        ...


class Program:
    """A child process and its process group."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        ready_line: str = "",
        check: Callable[[], bool] | None = None,
        start_s: float = 30.0,
        stop_s: float = 10.0,
        cwd: Path | None = None,
    ) -> None:
        """``env`` is the whole environment. Ready: a line holds ``ready_line`` (if given) and ``check`` is true."""
        self.name = name
        self.start_s = start_s
        self.stop_s = stop_s
        self._argv = list(argv)
        self._env = {**env, "PYTHONUNBUFFERED": "1"}
        self._ready_line = ready_line
        self._check = check
        self._cwd = cwd
        self._line_seen = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def output(self) -> int | None:
        """Its stdout and stderr, in the order written."""
        return self._process.stdout.fileno() if self._process and self._process.stdout else None

    def start(self) -> None:
        """Start it with a closed stdin. Raises OSError when the program cannot be run."""
        self._line_seen = not self._ready_line
        argv = self._argv
        if sys.platform == "linux":
            argv = [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid()), *argv]
        if self._process and self._process.stdout:
            self._process.stdout.close()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env,
            cwd=self._cwd,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def saw(self, line: str) -> None:
        """Remember that the ready line came."""
        self._line_seen = self._line_seen or self._ready_line in line

    def is_ready(self) -> bool:
        """The line has come and the check, if any, passes."""
        return self._line_seen and (self._check is None or self._check())

    def poll(self) -> int | None:
        """The exit status; what is left of its group is killed first."""
        if self._process is None:
            return None
        if self._process.returncode is None and _has_ended(self._process):
            # Its number is still taken while the exit is not collected, so the group can be no one else's.
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        return self._process.returncode

    def terminate(self) -> None:
        """SIGTERM to the program alone: a master stops its own workers."""
        if self.poll() is None and self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to its whole group."""
        if self.poll() is None:
            self._signal_group(signal.SIGKILL)

    def close(self) -> None:
        """Release the output's descriptor. Idempotent."""
        if self._process and self._process.stdout:
            self._process.stdout.close()

    def _signal_group(self, number: signal.Signals) -> None:
        # macOS answers EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process is not None:
                os.killpg(self._process.pid, number)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    if sys.platform != "linux":
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def describe(status: int) -> str:
    """``status 3`` or ``signal SIGKILL``."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


class Lines:
    """Cuts a byte stream into printable lines of at most ``LINE_BYTES`` bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes; a longer line comes in pieces."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        pieces = [line[i : i + LINE_BYTES] for line in whole for i in range(0, max(len(line), 1), LINE_BYTES)]
        while len(self._rest) > LINE_BYTES:
            pieces.append(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        return [_printable(piece) for piece in pieces]

    def flush(self) -> list[str]:
        """The unfinished last line, if there is one."""
        rest, self._rest = self._rest, b""
        return [_printable(rest)] if rest else []


def _printable(line: bytes) -> str:
    return _CONTROL.sub("", line.decode(errors="replace").replace("\t", "    "))
