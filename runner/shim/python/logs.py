"""What user code prints, on its way from the pipe behind fds 1 and 2 to the runner. Lives in the worker.

Output belongs to the call during which it was written: the main thread empties the pipe before it sends the answer, and
throws away what is in it when the next call begins. A thread does the same while a call runs, so that a full pipe never
stops user code. At most ``log_bytes`` of one call are sent; the rest is read and counted only.
"""

from __future__ import annotations

import _thread
import fcntl
import io
import os
import select
import sys
import time

from . import shared, wire

#: After the pipe became readable the thread waits this long before it reads. Lines written one by one then share a
#: frame, and what was written just before a crash is still in the pipe, where the keeper finds it. A pipe holds
#: 64 KiB, so this also bounds a flood to 64 MB/s, which is no crawl.
GATHER_S = 0.001
#: Exit status of a worker that lost its connection or its log pipe (EX_IOERR).
STATUS_IO = 74


def pipe_bytes(fd: int) -> int:
    """How much the pipe can hold: more than that cannot have been written before now and be unread."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


class Logs:
    """Owns the lock under which frames are sent: an answer must not overtake output that came before it."""

    def __init__(self, fd: int, link: wire.Link, state: memoryview) -> None:
        """``fd`` is the non-blocking read end of the pipe."""
        self.lock = _thread.allocate_lock()
        self._file = io.FileIO(fd, "rb", closefd=False)
        self._fd = fd
        self._link = link
        self._state = state
        self._view = memoryview(bytearray(wire.LOG_FRAME_BYTES))
        self._is_call = False

    def start(self) -> None:
        """Begin to empty the pipe in the background."""
        _thread.start_new_thread(self._pump, ())

    def begin(self, call_id: int, cap_bytes: int | None = None) -> None:
        """From now on output belongs to this call (0: to loading the function). A new cap holds from here on."""
        with self.lock:
            if cap_bytes is not None:
                self._state[shared.LOG_CAP] = cap_bytes
            self.reset(call_id)

    def reset(self, call_id: int) -> None:
        """As ``begin``, for a caller that holds the lock."""
        state = self._state
        self.drain()
        state[shared.LOGGED] = state[shared.DROPPED] = 0
        state[shared.CALL] = call_id
        self._is_call = True

    def finish(self) -> None:
        """Send all that the call has written; the caller holds the lock and sends the answer next."""
        self.drain()
        state = self._state
        if dropped := state[shared.DROPPED]:
            self._link.send(wire.LOG, state[shared.CALL], b'{"truncated":true,"dropped_bytes":%d}' % dropped, b"")
        self._is_call = False
        state[shared.CALL] = 0

    def drain(self) -> None:
        """Under the lock, empty the pipe of what is in it now; who never stops writing cannot keep us here."""
        count = self._file.readinto(self._view)
        if not count:
            return
        left = pipe_bytes(self._fd)
        while count:
            self._take(count)
            left -= count
            count = self._file.readinto(self._view) if left > 0 else 0

    def _take(self, count: int) -> None:
        if not self._is_call:
            return  # written between two calls: it belongs to none
        state = self._state
        kept = min(count, state[shared.LOG_CAP] - state[shared.LOGGED])
        if kept:
            self._link.send(wire.LOG, state[shared.CALL], b"{}", self._view[:kept])
            state[shared.LOGGED] += kept
        state[shared.DROPPED] += count - kept

    def _pump(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        try:
            while True:
                events = poller.poll()
                time.sleep(GATHER_S)
                with self.lock:
                    self.drain()
                if not events[0][1] & select.POLLIN:
                    return  # every write end is closed: user code closed its own output
        except OSError:
            # The connection or the pipe is gone: without either, no call can be answered.
            os._exit(STATUS_IO)


def flush() -> None:
    """Push what Python still buffers into the pipe. User code may have closed or replaced the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - contextlib costs half a microsecond, on every call
            stream.flush()
        except Exception:  # noqa: BLE001, S110 - whatever stream user code put there, its trouble is not the call's
            pass
