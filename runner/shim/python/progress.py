"""What ``bananas_sdk.progress`` tells, on its way to the runner. Lives in the worker.

A handler may tell as often as it likes: only the latest value counts. One frame goes out at once, then at most one per
``GAP_S``, and before the answer whatever is not sent yet. The thread for what comes within the gap starts with it.
"""

from __future__ import annotations

import _thread
import os

# By name, since gevent in user code replaces them in their module.
from time import monotonic, sleep

from . import logs, wire

GAP_S = 0.2


class Progress:
    """Owns what the running call has told and is not sent yet."""

    def __init__(self, link: wire.Link, lock: _thread.LockType) -> None:
        """Frames are sent under ``lock``, which the answer needs too: none can follow it."""
        self._link = link
        self._lock = lock
        self._pid = os.getpid()
        self._call_id = 0
        self._latest: bytes | None = None
        self._due_s = 0.0
        #: Held from a ring to the thread's look at what is there; unlike a flag it can be tested and set in one go.
        self._rung = _thread.allocate_lock()
        #: What the thread waits for; None until there is one.
        self._bell: _thread.LockType | None = None

    def begin(self, call_id: int) -> None:
        """From now on what is told belongs to this call."""
        self._latest = None
        self._call_id = call_id

    def finish(self) -> None:
        """Send what is left of the call; the caller holds the lock and sends the answer next."""
        if self._latest is not None:
            self._send()
        self._call_id = 0

    def tell(self, text: bytes) -> None:
        """Take the value of a call, as JSON text; from any thread, signal handler or finalizer, so it never waits."""
        if not self._call_id or os.getpid() != self._pid:
            return  # between calls, or in a child of user code: there is nothing that it could belong to
        self._latest = text
        if monotonic() >= self._due_s and self._lock.acquire(False):
            try:
                self._send()
            finally:
                self._lock.release()
        elif self._rung.acquire(False):
            self._ring()

    def _ring(self) -> None:
        if self._bell is None:
            self._bell = _thread.allocate_lock()
            self._bell.acquire()
            try:
                _thread.start_new_thread(self._pump, (self._bell,))
            except RuntimeError:
                return  # user code has used up all threads: the value goes out with a later one, or before the answer
        self._bell.release()

    def _pump(self, bell: _thread.LockType) -> None:
        while True:
            bell.acquire()
            while not self._send_when_due():
                pass

    def _send_when_due(self) -> bool:
        """Wait out the gap; False when somebody else has sent meanwhile, so that another one has begun."""
        sleep(max(0.0, self._due_s - monotonic()))
        with self._lock:
            if monotonic() < self._due_s:
                return False
            self._rung.release()  # before the look at what is there: whoever comes later rings again
            self._send()
        return True

    def _send(self) -> None:
        text = self._latest
        if text is None or not self._call_id:
            return
        try:
            self._link.send(wire.PROGRESS, self._call_id, b"{}", text)
        except OSError:
            # Without the connection no call can be answered.
            os._exit(logs.STATUS_IO)
        self._due_s = monotonic() + GAP_S
        if self._latest is text:
            self._latest = None
