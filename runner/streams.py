"""What a container of a user's own image prints, read from the engine's attach stream as it comes.

The engine puts a header before each piece: stream (1: stdout, 2: stderr) and length. ``Streams`` reads on a thread of
its own from the start of the container to its end, so that a full pipe never stops it, and hands the pieces to whoever
listens at the moment; what nobody listens to is dropped. Never parses what is printed. ``contract_http`` and
``contract_exec`` are the users.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable

from bananas import events

STDOUT, STDERR = 1, 2
_HEAD = struct.Struct(">BxxxI")
_CHUNK_BYTES = 64 * 1024
#: Reading lets no other greenlet run while there is data, so it pauses after this many pieces.
_PAUSE_AFTER = 16

#: Gets the number of the stream and a piece of it; must not wait.
Listener = Callable[[int, bytes], None]


class CappedLog:
    """A listener that passes both streams on up to a cap; once over it, one empty piece says so."""

    def __init__(self, on_log: Callable[[bytes], None], cap_bytes: int) -> None:
        self._on_log = on_log
        self._room = cap_bytes
        self._is_cut = False

    def __call__(self, _: int, data: bytes) -> None:
        """Take a piece."""
        kept = data[: self._room]
        self._room -= len(kept)
        if kept:
            self._on_log(kept)
        if len(kept) < len(data) and not self._is_cut:
            self._is_cut = True
            self._on_log(b"")


class Streams:
    """See the module."""

    def __init__(self, sock: socket.socket, listener: Listener | None = None) -> None:
        """Takes the socket over; begins to read at once."""
        sock.settimeout(None)
        self._sock = sock
        self._listener = listener
        self._pieces = 0
        #: Set when the container has ended and everything that it printed was handed on.
        self.ended = threading.Event()
        #: Called on the reading thread at that moment.
        self.on_end: Callable[[], None] | None = None
        threading.Thread(target=self._run, name="container-output", daemon=True).start()

    def listen(self, listener: Listener | None) -> None:
        """Who gets what comes from now on."""
        self._listener = listener

    def settle(self, quiet_s: float, most_s: float) -> None:
        """Wait until nothing has come for ``quiet_s``, at most ``most_s``: the engine passes output on a little later
        than it was written, and says nothing when that was all."""
        deadline = time.monotonic() + most_s
        while time.monotonic() < deadline:
            seen = self._pieces
            if self.ended.wait(quiet_s) or seen == self._pieces:
                return

    def send(self, data: bytes) -> None:
        """Write all of the input and its end; returns when the container has taken it. Raises OSError."""
        self._sock.sendall(data)
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Stop reading. Idempotent."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError as e:
            events.STREAM_CLOSED(error=e)

    def _run(self) -> None:
        try:
            while head := self._read(_HEAD.size):
                stream, left = _HEAD.unpack(head)
                while left > 0 and (data := self._read(min(left, _CHUNK_BYTES))):
                    left -= len(data)
                    self._hand_on(stream, data)
                if left:
                    break
        except OSError as e:
            events.STREAM_BROKE(error=e)
        finally:
            self._sock.close()
            self.ended.set()
            if self.on_end is not None:
                self.on_end()

    def _hand_on(self, stream: int, data: bytes) -> None:
        self._pieces += 1
        if self._listener is not None:
            self._listener(stream, data)
        if self._pieces % _PAUSE_AFTER == 0:
            time.sleep(0)

    def _read(self, count: int) -> bytes:
        """So many bytes; empty at the end of the stream."""
        data = bytearray()
        while len(data) < count:
            piece = self._sock.recv(count - len(data))
            if not piece:
                return b""
            data += piece
        return bytes(data)
