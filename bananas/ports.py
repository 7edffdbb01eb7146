"""Whether a TCP port can be listened on, and who has it when it cannot.

Reads /proc only and imports nothing but the standard library, so that the set-up scripts can ask before anything is
installed: ``python3 -I bananas/ports.py 8080``. It never opens a connection and ends no process. Called by
``bananas.stack``, ``bananas.own_redis`` and ``scripts/demo``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

#: Exit code of ``python3 -I bananas/ports.py PORT`` for a port that cannot be used.
TAKEN_EXIT = 20
#: How many ports above the taken one are tried for a suggestion.
SUGGESTIONS = 50
_LISTEN = "0A"
_NAME_BYTES = 64


def taken(host: str, port: int) -> str | None:
    """What the kernel says against listening there, such as ``Address already in use``; None when it is free."""
    return _bind(host, port)[1]


def problem(host: str, port: int) -> str | None:
    """One line: why the port cannot be used, which process has it, and the way out. None when it is free."""
    number, said = _bind(host, port)
    if said is None:
        return None
    above = range(port + 1, min(port + SUGGESTIONS, 65535) + 1)
    free = next((p for p in above if taken(host, p) is None), None)
    hint = f", for example BANANAS_PORT={free}" if free else ""
    if number != errno.EADDRINUSE:
        return f"port {port} on {host} cannot be used ({said}); choose another with BANANAS_PORT{hint}"
    return f"port {port} on {host} is taken by {holder(port)}; stop it, or choose another with BANANAS_PORT{hint}"


def check_port(host: str, port: int) -> None:
    """Raises ConfigError with ``problem`` when the port cannot be used."""
    from bananas.errors import ConfigError  # not there yet when this file answers by itself

    if said := problem(host, port):
        raise ConfigError(said)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def holder(port: int) -> str:
    """Who listens on a port of this machine, in words; only processes that this user may look into have a name."""
    owners = dict(_listeners(port))
    for pid, inode in _sockets():
        if inode in owners:
            return f"{_name(pid)} (process {pid})"
    if not owners:
        return "a program that /proc does not show"
    uid = min(owners.values())
    with contextlib.suppress(KeyError):
        return f"a process of user {pwd.getpwuid(uid).pw_name} (its name: sudo ss -ltnp 'sport = :{port}')"
    return f"a process of user id {uid} (its name: sudo ss -ltnp 'sport = :{port}')"


def _bind(host: str, port: int) -> tuple[int | None, str | None]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as e:
        return e.errno, e.strerror or str(e)
    return None, None


def _listeners(port: int) -> Iterator[tuple[str, int]]:
    """(inode, user id) of each socket that listens on the port, at whatever address."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/self/net", table).read_text().splitlines()[1:]
        except OSError:  # no IPv6, or not Linux
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                yield columns[9], int(columns[7])


def _sockets() -> Iterator[tuple[int, str]]:
    """(process id, inode) of every open socket that this user may see."""
    with contextlib.suppress(OSError), os.scandir("/proc") as processes:
        for pid in sorted(int(entry.name) for entry in processes if entry.name.isdecimal()):
            with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
                for descriptor in descriptors:
                    with contextlib.suppress(OSError):
                        kind, _, rest = os.readlink(descriptor.path).partition(":[")
                        if kind == "socket":
                            yield pid, rest.rstrip("]")


def _name(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()[:_NAME_BYTES]
    except OSError:  # it ended a moment ago
        return "a program"
    return name if name.isprintable() and name else "a program"


def main(arguments: list[str]) -> int:
    """``PORT [HOST]``: 0 when it can be listened on, else one line and 20; 2 for something that is no port."""
    text, host = (arguments or [""])[0], (arguments[1:] or ["127.0.0.1"])[0]
    if not text.isdecimal() or not 0 < int(text) < 65536:
        print(f"BANANAS_PORT={text!r} is not valid: must be 1 to 65535", file=sys.stderr)
        return 2
    said = problem(host, int(text))
    if said:
        print(said, file=sys.stderr)
    return TAKEN_EXIT if said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
