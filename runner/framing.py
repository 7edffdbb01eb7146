"""Frames between the runner and the shim in a sandbox; the format is written down in ``docs/shim-protocol.md``.

``encode`` makes one bytes object, so that a frame is one write; ``FrameReader`` takes frames out of a byte stream, with
one read for a small frame. Neither knows what the kinds mean to a sandbox: that is ``runner.sandbox``, its only user.
What comes from a sandbox may have been written by user code, so every length is checked before it is believed.
"""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import msgspec

from bananas.errors import ProtocolError, SandboxDied, SandboxError
from bananas.protocols import Channel
from bananas.settings import LIMITS

INIT, READY, INVOKE, RESULT, ERROR, LOG, EXIT, PROGRESS = KINDS = range(1, 9)

#: Length of all that follows it, kind, call id, length of meta.
_HEAD = struct.Struct(">IBQI")
_LENGTH_BYTES = 4
_REST_BYTES = _HEAD.size - _LENGTH_BYTES
#: First size of the buffer, and the size it goes back to: a busy call's log frame fits.
_BUFFER_BYTES = 68 * 1024
_meta_decoder = msgspec.json.Decoder(dict[str, Any])


class Frame(msgspec.Struct, frozen=True):
    """One message. ``call_id`` is 0 for what belongs to no call; ``body`` is raw bytes."""

    kind: int
    call_id: int
    meta: dict[str, Any]
    body: bytes


def encode(kind: int, call_id: int, meta: dict[str, Any], body: bytes) -> bytes:
    """The frame's bytes; raises ProtocolError when it would be larger than ``LIMITS.frame_bytes``."""
    try:
        text = msgspec.json.encode(meta) if meta else b"{}"
    except UnicodeEncodeError:
        # Lone surrogates in an environment variable: json in the sandbox makes of this what they were.
        text = json.dumps(meta, separators=(",", ":")).encode()
    length = _REST_BYTES + len(text) + len(body)
    if length + _LENGTH_BYTES > LIMITS.frame_bytes:
        raise ProtocolError(
            f"a frame of {length + _LENGTH_BYTES} bytes (meta {len(text)}, body {len(body)}) is over the limit of "
            f"{LIMITS.frame_bytes}; send less data in one call"
        )
    return b"".join((_HEAD.pack(length, kind, call_id, len(text)), text, body))


class FrameReader:
    """Takes frames out of ``channel``, which nobody else may read. One reader at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._resize(_BUFFER_BYTES)
        #: What is read but not yet returned lies between these two.
        self._start = 0
        self._end = 0
        #: Why no frame can follow, once that is so.
        self._over: SandboxError | None = None

    def read(self, timeout_s: float) -> Frame:
        """The next frame, which must be complete within ``timeout_s``, however many reads that takes.

        TimeoutError: it was not. What did arrive is kept, so a later call goes on from there: this is how the last
        words of a sandbox that ran into its deadline are read. The caller must expect the late answer among them.
        ProtocolError (malformed or oversized) and SandboxDied (the end of the stream) are final: after them every call
        raises the same again.
        """
        if self._over is not None:
            raise self._over
        deadline = time.monotonic() + timeout_s
        needed = _HEAD.size
        try:
            while self._end - self._start < needed or (needed := self._frame_bytes()) > self._end - self._start:
                self._fill(needed, deadline)
            return self._take(needed)
        except SandboxError as e:
            self._over = e
            raise

    def _frame_bytes(self) -> int:
        """Length of the frame whose header is at the start of the buffer."""
        length, kind, _, meta_bytes = _HEAD.unpack_from(self._buffer, self._start)
        total: int = length + _LENGTH_BYTES
        if total > LIMITS.frame_bytes:
            raise ProtocolError(f"the sandbox sent a frame of {total} bytes, the limit is {LIMITS.frame_bytes}")
        if kind not in KINDS:
            raise ProtocolError(f"the sandbox sent a frame of unknown kind {kind}; known are 1 to {KINDS[-1]}")
        if length < _REST_BYTES or meta_bytes > length - _REST_BYTES:
            raise ProtocolError(
                f"the sandbox sent a frame whose length {length} does not hold its header of {_REST_BYTES} and "
                f"meta of {meta_bytes} bytes"
            )
        return total

    def _take(self, total: int) -> Frame:
        _, kind, call_id, meta_bytes = _HEAD.unpack_from(self._buffer, self._start)
        body_at = self._start + _HEAD.size + meta_bytes
        try:
            meta = _meta_decoder.decode(self._view[self._start + _HEAD.size : body_at])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise ProtocolError(f"the sandbox sent a frame of kind {kind} whose meta is no JSON object: {e}") from e
        body = bytes(self._view[body_at : self._start + total])
        self._start += total
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > _BUFFER_BYTES:
                self._resize(_BUFFER_BYTES)
        return Frame(kind, call_id, meta, body)

    def _resize(self, size_bytes: int) -> None:
        """Another buffer; what is in the old one is lost."""
        self._buffer = bytearray(size_bytes)
        self._view = memoryview(self._buffer)

    def _fill(self, needed: int, deadline: float) -> None:
        """Read once, into a buffer in which a frame of ``needed`` bytes has room."""
        if self._start + needed > len(self._buffer):
            kept = self._buffer[self._start : self._end]
            if needed > len(self._buffer):
                self._resize(needed)
            self._buffer[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the sandbox sent no complete frame in time")
        try:
            self._channel.settimeout(left_s)
            count = self._channel.recv_into(self._view[self._end :])
        except TimeoutError:
            raise TimeoutError("the sandbox sent no complete frame in time") from None
        except OSError as e:
            raise SandboxDied(f"the connection to the sandbox broke: {e}") from e
        if count == 0:
            where = "in the middle of a frame" if self._end > self._start else "without a word"
            raise SandboxDied(f"the sandbox ended {where}")
        self._end += count
