"""What a real gateway tells systemd, which the test plays here; ``make test-bare`` boots a real one."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas.embedded import EmbeddedRedis
from tests.platform import Platform, Process, until

SOON_S = 30.0
#: Process, user and group of a sender: struct ucred.
_CREDENTIALS = struct.Struct("3i")


class Systemd:
    """Takes datagrams at a socket of its own; ``env`` is what a unit with ``WatchdogSec=2`` would be given."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(SOON_S)
        self.env = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "2000000"}
        #: What came, in order, and the processes that it came from.
        self.told: list[str] = []
        self.tellers: set[int] = set()

    def wait_for(self, start: str) -> str:
        """The next message that begins so."""
        deadline = time.monotonic() + SOON_S
        while time.monotonic() < deadline:
            message, [(_, _, credentials)], *_ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            self.told.append(message.decode())
            self.tellers.add(_CREDENTIALS.unpack(credentials)[0])
            if self.told[-1].startswith(start):
                return self.told[-1]
        raise AssertionError(f"nobody said {start}: {self.told}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path)
    yield systemd
    systemd.close()


@pytest.fixture
def gateway(systemd: Systemd, tmp_path: Path) -> Iterator[tuple[EmbeddedRedis, Platform, Process]]:
    """A gateway of two processes that listens while its Redis is away."""
    with EmbeddedRedis(tmp_path / "redis") as server:
        server.stop()
        with Platform(server.url, BANANAS_GATEWAY_WORKERS="2") as platform:
            yield server, platform, platform.gateway(**systemd.env)


def test_it_is_ready_once_a_process_of_it_reaches_redis(systemd: Systemd, gateway) -> None:
    """Before that the status says what is missing; with the stop it says so; the watchdog is fed all the time."""
    server, platform, process = gateway
    assert "Redis" in systemd.wait_for("STATUS=takes no jobs: ")
    server.start()
    ready = systemd.wait_for("READY=1\n")
    assert f"STATUS=serves {platform.url} with 2 processes" in ready
    assert not [message for message in systemd.told[:-1] if "READY" in message]
    for _ in range(2):
        systemd.wait_for("WATCHDOG=1")
    process.popen.send_signal(signal.SIGTERM)
    systemd.wait_for("STOPPING=1")
    assert process.popen.wait(SOON_S) == 0


def test_it_says_that_it_is_alive_while_it_waits_for_its_processes(systemd: Systemd, gateway) -> None:
    """A reload (SIGHUP) stands still until the old processes are gone, and is no hang; no process speaks for it."""
    server, _, process = gateway
    server.start()
    systemd.wait_for("READY=1\n")
    children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children")
    old = [int(pid) for pid in children.read_text().split()]
    os.kill(old[0], signal.SIGSTOP)  # a process that does not leave
    try:
        process.popen.send_signal(signal.SIGHUP)
        until(lambda: len(children.read_text().split()) > 2, SOON_S, "new processes")
        for _ in range(2):
            systemd.wait_for("WATCHDOG=1")
        # NotifyAccess=main: whatever another process says is not heard.
        assert systemd.tellers == {process.popen.pid}
        assert str(old[0]) in children.read_text().split()
    finally:
        os.kill(old[0], signal.SIGCONT)
    until(lambda: not {*map(str, old)} & {*children.read_text().split()}, SOON_S, "the old processes to be gone")
