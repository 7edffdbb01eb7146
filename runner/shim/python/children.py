"""Are processes left over from a call? Then the sandbox must not serve another one, for they could reach into it."""

from __future__ import annotations

import os

#: Ended children that user code never waited for keep a place in the process table each, and those are few.
MAX_ZOMBIES = 16
_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # WNOWAIT: the status stays there for user code's own Popen objects
_CHILDREN = "left child processes running"
_INIT_CHILDREN = "/proc/1/task/1/children"


class Children:
    """Looks at the worker's own children and at orphans, which belong to the sandbox's init process."""

    def __init__(self, keeper_pid: int, keeper_parent_pid: int) -> None:
        """Where the keeper is not the child of process 1, there is no such init, and orphans are not seen."""
        self._expected = b"%d " % keeper_pid
        self._init_fd: int | None = None
        if keeper_parent_pid == 1:
            try:
                self._init_fd = os.open(_INIT_CHILDREN, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._init_fd = None  # a kernel without that file: children are seen, orphans are not

    def trouble(self) -> str:
        """Why the sandbox cannot be used again; empty when nothing is left. Cheap when nothing ever forked."""
        try:
            ended = os.waitid(os.P_ALL, 0, _LOOK)
        except ChildProcessError:
            pass  # the usual case: there are no children at all
        else:
            if problem := _CHILDREN if ended is None else _look_closer():
                return problem
        if self._init_fd is not None and os.pread(self._init_fd, 64, 0) != self._expected:
            return self._orphans()
        return ""

    def _orphans(self) -> str:
        assert self._init_fd is not None
        pids = os.pread(self._init_fd, 4096, 0).split()
        running = [pid for pid in pids if pid != self._expected.strip() and _state(pid.decode())[0] not in "ZX"]
        return "left detached processes running" if running else ""


def _look_closer() -> str:
    """At least one child has ended and was not waited for; look for others that run."""
    me = str(os.getpid())
    zombies = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            state, parent = _state(name)
            if parent == me:
                if state not in "ZX":
                    return _CHILDREN
                zombies += 1
    return f"left {zombies} ended child processes without waiting for them" if zombies > MAX_ZOMBIES else ""


def _state(pid: str) -> tuple[str, str]:
    """State letter and parent of a process; ``("X", "")`` when it is gone by now."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may itself hold spaces and parentheses.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return "X", ""
    return fields[0].decode(), fields[1].decode()
