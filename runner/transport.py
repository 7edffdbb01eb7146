"""The ``socket`` transport: the runner listens on a Unix socket in a sandbox's directory, the shim connects to it.

It moves bytes and knows nothing of frames. It is ordinary blocking code: the runner has gevent patch ``socket``, which
makes every call here cooperative. There the channel itself is ``runner.green``'s, which does the same with less work.
``runner.sandbox`` is the user.
"""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path
from typing import Any

from gevent import monkey

from bananas.errors import ConfigError
from bananas.protocols import Channel
from bananas.settings import LIMITS
from runner.green import GreenChannel

#: The kernel's own poll: with a timeout of 0 it cannot block, and gevent's would start a watcher for each look.
_poll = monkey.get_original("select", "poll")


def is_hung_up(sock: socket.socket) -> bool:
    """True once the other end is closed, or ours is; does not wait and reads nothing."""
    poll = _poll()
    try:
        poll.register(sock.fileno(), select.POLLRDHUP)
    except ValueError:  # closed
        return True
    return bool(poll.poll(0))


def listen_unix(path: Path, backlog: int, socket_class: type[Any] = socket.socket) -> Any:
    """A listening Unix socket at ``path`` that any uid may connect to.

    The container sees it as uid 65534 through a read-only mount, hence mode 0666; on the host the directory above
    keeps other users out. Raises ConfigError when the path is too long, OSError when it is taken or not writable.
    """
    length = len(os.fsencode(path))
    if length > LIMITS.socket_path_bytes:
        raise ConfigError(
            f"the socket path {path} has {length} bytes and the kernel allows {LIMITS.socket_path_bytes}; "
            "set BANANAS_STATE_DIR to a shorter directory"
        )
    listener = socket_class(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


class SocketChannel:
    """See ``bananas.protocols.Channel``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def sendall(self, data: bytes) -> None:
        """Send all of it or raise OSError (TimeoutError after the timeout, with part of it sent)."""
        self._sock.sendall(data)

    def recv_into(self, buffer: memoryview) -> int:
        """Read some bytes; 0 at the end of the stream; raises TimeoutError after the timeout."""
        return self._sock.recv_into(buffer)

    def settimeout(self, value: float | None) -> None:
        """Seconds for each following call; None waits for ever."""
        self._sock.settimeout(value)

    @property
    def is_hung_up(self) -> bool:
        """True once the sandbox has closed its end or died; does not wait and reads nothing."""
        return is_hung_up(self._sock)

    def half_close(self) -> None:
        """Order the sandbox to end; what it still says can be read. Raises OSError when it is closed already."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Release it. Idempotent."""
        self._sock.close()


class SocketListener:
    """Waits for the one connection of one sandbox."""

    def __init__(self, path: Path) -> None:
        """Listen at ``path``. Raises ConfigError when it is too long for a socket, OSError when it is taken."""
        self._path = path
        self._sock: socket.socket = listen_unix(path, backlog=1)

    def accept(self, timeout_s: float) -> Channel:
        """The first connection; there cannot be a second one, since the listener is gone when this returns.

        Raises TimeoutError when none came within ``timeout_s``; the caller then closes the listener.
        """
        self._sock.settimeout(timeout_s)
        try:
            sock, _ = self._sock.accept()
        except TimeoutError:
            raise TimeoutError(f"nothing connected to {self._path} within {timeout_s:g} s") from None
        self.close()
        return GreenChannel(sock) if monkey.is_module_patched("socket") else SocketChannel(sock)

    def close(self) -> None:
        """Stop listening and remove the socket file. Idempotent."""
        self._sock.close()
        self._path.unlink(missing_ok=True)
