"""What ``runner.doctor.inside`` lets run in a sandbox: it looks around, tries what must not work, and tells.

It is deployed as a function of its own, so it imports the standard library and nothing else, and runs where no other
file of ours is. It judges nothing.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from pathlib import Path
from typing import Any

_WALK_S = 10.0
_MEMORY_STEP = 1024 * 1024
#: Where a kernel shows the limit of memory, and of memory with swap: version 2, then version 1.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.swap.max"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
)


def handle(event: dict[str, Any], _: object) -> dict[str, Any]:
    """``{"do": "look", "targets": [[host, port]…], "paths": […], "timeout_s"}``, or ``{"do": "memory", "mb"}``."""
    if event["do"] == "memory":
        return {"held_mb": _take(int(event["mb"]))}
    status = _status()
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "caps": {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "no_new_privs": status.get("NoNewPrivs", ""),
        "seccomp": status.get("Seccomp", ""),
        "setuid": _setuid(),
        "root": _write("/bananas-probe"),
        "shim": _write("/run/bananas/bananas-probe"),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "answers": connect(event["targets"], float(event["timeout_s"])),
        "paths": [path for path in event["paths"] if os.path.exists(path)],
        "env": sorted(os.environ),
        "limits": _limits(),
        **_writable(),
    }


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _setuid() -> str:
    """What comes of becoming root."""
    try:
        os.setuid(0)
    except OSError as e:
        return name_of(e.errno)
    return "worked"


def _write(path: str) -> str:
    """``worked``, or the name of the error."""
    try:
        with open(path, "w") as file:
            file.write("x")
        os.unlink(path)
    except OSError as e:
        return name_of(e.errno)
    return "worked"


def _writable() -> dict[str, Any]:
    """Folders in which a file can be made, with kind and KiB of their file system, each with nothing below it; and
    whether all were looked at in time."""
    found: list[list[Any]] = []
    kinds = _kinds()
    until = time.monotonic() + _WALK_S
    for folder, names, _ in os.walk("/"):
        if time.monotonic() > until:
            return {"writable": found, "all_seen": False}
        if folder == "/":
            names[:] = [name for name in names if name not in ("proc", "sys")]
        if _write(os.path.join(folder, "bananas-probe")) == "worked":
            about = os.statvfs(folder)
            mount = max((point for point in kinds if folder == point or folder.startswith(point)), key=len)
            found.append([folder, kinds[mount], about.f_blocks * about.f_frsize // 1024])
            names.clear()
    return {"writable": sorted(found), "all_seen": True}


def _kinds() -> dict[str, str]:
    """Kinds of file systems by where they are mounted, each but / with a / at its end."""
    lines = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    found = {fields[1]: fields[2] for fields in (line.split() for line in lines)}
    return {**{f"{point.rstrip('/')}/": kind for point, kind in found.items()}, **found}


def _limits() -> list[int | None]:
    """Bytes of memory, and of memory with swap, by the sandbox's own cgroup; None: not shown, or no limit."""
    for memory, swap in _LIMITS:
        if os.path.exists(memory):
            first, second = _number(memory), _number(swap)
            if memory.endswith(".max") and first is not None and second is not None:
                second += first
            return [first, second]
    return [None, None]


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _take(mb: int) -> int:
    """Hold that much memory, every page of it written; does not return where the limit is less."""
    held = [bytes([number % 251 + 1]) * _MEMORY_STEP for number in range(mb)]
    return len(held)


def connect(targets: list[list[Any]], timeout_s: float) -> list[str]:
    """For each host and port ``connected``, the name of the error, or nothing: no answer in time."""
    answers, waiting, poll = [""] * len(targets), {}, select.poll()
    for number, (host, port) in enumerate(targets):
        sock = socket.socket()
        sock.setblocking(False)
        code = sock.connect_ex((host, port))
        if code == errno.EINPROGRESS:
            waiting[sock.fileno()] = number, sock
            poll.register(sock, select.POLLOUT)
        else:
            answers[number] = name_of(code)
            sock.close()
    until = time.monotonic() + timeout_s
    while waiting and time.monotonic() < until:
        for fd, _ in poll.poll(max(1, 1000 * (until - time.monotonic()))):
            number, sock = waiting.pop(fd)
            poll.unregister(fd)
            answers[number] = name_of(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            sock.close()
    for _, sock in waiting.values():
        sock.close()
    return answers


def name_of(code: int | None) -> str:
    """``connected``, or the name of an error's number."""
    return errno.errorcode.get(code, str(code)) if code else "connected"
