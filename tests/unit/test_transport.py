"""The socket on which a sandbox's one connection arrives."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas.errors import ConfigError
from runner.transport import SocketListener


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="bn-") as name:
        yield Path(name)


def test_the_listener_takes_one_connection_and_is_gone(directory: Path) -> None:
    """Nobody else can ever be the sandbox."""
    path = directory / "s"
    listener = SocketListener(path)
    assert path.stat().st_mode & 0o777 == 0o666
    client = socket.socket(socket.AF_UNIX)
    thread = threading.Thread(target=client.connect, args=[str(path)])
    thread.start()
    channel = listener.accept(5)
    thread.join(5)
    assert not path.exists()
    listener.close()
    channel.sendall(b"hi")
    channel.half_close()
    assert client.recv(10) == b"hi"
    assert client.recv(10) == b""
    client.sendall(b"still")
    buffer = bytearray(10)
    channel.settimeout(5)
    assert channel.recv_into(memoryview(buffer)) == 5
    channel.settimeout(0.05)
    with pytest.raises(TimeoutError):
        channel.recv_into(memoryview(buffer))
    channel.close()
    channel.close()
    client.close()


def test_a_listener_that_nobody_connects_to_says_so(directory: Path) -> None:
    """With the path, since a wrong mount is the usual reason."""
    listener = SocketListener(directory / "s")
    with pytest.raises(TimeoutError, match=f"nothing connected to {directory}/s within 0.05 s"):
        listener.accept(0.05)
    listener.close()
    assert not (directory / "s").exists()


def test_a_path_that_is_too_long_for_a_socket_is_named(directory: Path) -> None:
    """With its length, the limit and what to change."""
    fits = directory / ("x" * (107 - len(str(directory)) - 1))
    SocketListener(fits).close()
    too_long = fits.with_name(fits.name + "x")
    with pytest.raises(ConfigError, match="has 108 bytes and the kernel allows 107; set BANANAS_STATE_DIR"):
        SocketListener(too_long)
