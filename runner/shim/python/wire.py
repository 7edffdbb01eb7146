"""Frames, as the shim reads and writes them; the same format as ``runner/framing.py``, without its suspicion.

What comes in was written by the runner, so the reader only checks what would make it lose its place.
"""

from __future__ import annotations

import json
import select
import struct
from typing import TYPE_CHECKING, Any

from . import shared

if TYPE_CHECKING:
    import socket

PROTOCOL = 1
INIT, READY, INVOKE, RESULT, ERROR, LOG, EXIT, PROGRESS = range(1, 9)
FRAME_BYTES = 4 * 1024 * 1024
#: The kernel takes this much in one piece: a process that is killed has sent such a frame wholly or not at all.
WHOLE_BYTES = 32 * 1024
#: Body of one log frame; with head and meta it stays whole.
LOG_FRAME_BYTES = WHOLE_BYTES - 256

_HEAD = struct.Struct(">IBQI")
_LENGTH_BYTES = 4
_REST_BYTES = _HEAD.size - _LENGTH_BYTES
_BUFFER_BYTES = 64 * 1024


_decode_at_once = json.JSONDecoder().raw_decode


def decode_json(text: str) -> Any:
    """As ``json.loads``; sooner for text without spaces around it."""
    try:
        value, end = _decode_at_once(text)
    except ValueError:
        end = -1
    # It skips the spaces, or says what is wrong.
    return value if end == len(text) else json.loads(text)


class ProtocolBreach(Exception):
    """The runner sent something that the protocol does not allow."""


def encode(kind: int, call_id: int, meta: bytes, body: bytes | memoryview) -> bytes:
    """The bytes of one frame; ``meta`` is the text of a JSON object."""
    length = _REST_BYTES + len(meta) + len(body)
    return b"".join((_HEAD.pack(length, kind, call_id, len(meta)), meta, body))


def encode_meta(meta: dict[str, Any]) -> bytes:
    """JSON text in ASCII; a lone surrogate, which no decoder has to accept, becomes ``\\udXXX`` spelled out."""
    return json.dumps(_clean(meta), separators=(",", ":")).encode()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    return value


class Link:
    """The worker's end of the connection. Reading is for the main thread; writing needs the lock of ``logs.Logs``."""

    def __init__(self, sock: socket.socket, state: memoryview) -> None:
        self._sock = sock
        self._state = state
        # Who waits in recv is also woken when the runner takes what we sent; who waits in poll is not.
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._resize(_BUFFER_BYTES)
        self._start = 0
        self._end = 0

    def read(self) -> tuple[int, int, dict[str, Any], bytes] | None:
        """Kind, call id, meta and body of the next frame; None when the runner sends no more.

        Waits without a deadline: the keeper ends a worker whose runner is gone.
        """
        while self._end - self._start < _HEAD.size:
            if not self._fill(_HEAD.size):
                return None
        length, kind, call_id, meta_bytes = _HEAD.unpack_from(self._buffer, self._start)
        total = length + _LENGTH_BYTES
        if total > FRAME_BYTES or meta_bytes > length - _REST_BYTES:
            raise ProtocolBreach(f"a frame of {total} bytes with meta of {meta_bytes}; the limit is {FRAME_BYTES}")
        while self._end - self._start < total:
            if not self._fill(total):
                return None
        meta_at = self._start + _HEAD.size
        body_at = meta_at + meta_bytes
        meta = decode_json(self._buffer[meta_at:body_at].decode("utf-8", "surrogatepass"))
        body = bytes(self._view[body_at : self._start + total])
        self._start += total
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > _BUFFER_BYTES:
                self._resize(_BUFFER_BYTES)
        return kind, call_id, meta, body

    def _resize(self, size_bytes: int) -> None:
        """Another buffer; what is in the old one is lost."""
        self._buffer = bytearray(size_bytes)
        self._view = memoryview(self._buffer)

    def _fill(self, needed: int) -> bool:
        """Read once, into a buffer in which ``needed`` bytes have room; False at the end of the stream."""
        if self._start + needed > len(self._buffer):
            kept = self._buffer[self._start : self._end]
            if needed > len(self._buffer):
                self._resize(needed)
            self._buffer[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        self._poll.poll()
        count = self._sock.recv_into(self._view[self._end :])
        self._end += count
        return count > 0

    def send(self, kind: int, call_id: int, meta: bytes, body: bytes | memoryview) -> None:
        """Send one frame; raises OSError when the connection is broken.

        While a large one is on its way the shared state says so: whoever dies in between leaves a broken frame, and the
        keeper then knows that nothing can follow it.
        """
        data = encode(kind, call_id, meta, body)
        if len(data) <= WHOLE_BYTES:
            self._sock.sendall(data)
            return
        self._state[shared.SENDING] = 1
        try:
            sent = self._sock.send(data)
        except OSError:
            self._state[shared.SENDING] = 0  # not a byte of it went out
            raise
        while sent < len(data):
            sent += self._sock.send(memoryview(data)[sent:])
        self._state[shared.SENDING] = 0

    def close(self) -> None:
        """Give the connection up; for a process that user code forked, which must not speak on it."""
        self._sock.close()
