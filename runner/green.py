"""A channel to a shim for a process full of greenlets: as few system calls and timers as an answer needs.

gevent's own sockets try to read before they wait, start a timer for each wait, and ask for the size of the send buffer
before each write. Here an answer is waited for at once, one watcher stays with the loop as long as the channel lives,
and all deadlines share one timer. ``runner.transport`` makes these where gevent has patched the sockets. They move
bytes and know nothing of frames; they are for the greenlets of one thread, of which one at a time may read.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import gevent
from gevent import monkey

#: The kernel's own: with a timeout of 0 it cannot block.
_poll = monkey.get_original("select", "poll")
_socket = monkey.get_original("socket", "socket")
#: Events of a watcher, as libev numbers them.
_READ: Final = 1
_WRITE: Final = 2


class Deadlines:
    """Ends waits whose time is over. One timer serves all of them: most are over long before, and start none."""

    _by_hub: ClassVar[WeakKeyDictionary[Any, Deadlines]] = WeakKeyDictionary()

    def __init__(self, hub: Any) -> None:
        self._loop = hub.loop
        self._timer: Any = None
        #: When it fires, in monotonic seconds; the wait that it was started for may be over.
        self._fires_s = math.inf
        #: What to call → when.
        self._waits: dict[Callable[[], None], float] = {}

    @classmethod
    def here(cls) -> Deadlines:
        """Those of this thread."""
        hub = gevent.get_hub()
        found = cls._by_hub.get(hub)
        if found is None:
            found = cls._by_hub[hub] = cls(hub)
        return found

    def begin(self, expire: Callable[[], None], at_s: float) -> None:
        """Have ``expire`` called at that monotonic second, by the hub, unless ``end`` comes first."""
        self._waits[expire] = at_s
        if at_s < self._fires_s:
            self._start(at_s)

    def end(self, expire: Callable[[], None]) -> None:
        """That wait is over."""
        self._waits.pop(expire, None)

    def _start(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.close()
        self._fires_s = at_s
        self._timer = self._loop.timer(max(0.0, at_s - time.monotonic()))
        self._timer.start(self._fire)

    def _fire(self) -> None:
        self._timer.close()
        self._timer, self._fires_s = None, math.inf
        now_s = time.monotonic()
        for expire, at_s in list(self._waits.items()):
            # What an earlier one set off may have ended it, or begun another.
            if at_s <= now_s and self._waits.get(expire) == at_s:
                del self._waits[expire]
                expire()
        next_s = min(self._waits.values(), default=math.inf)
        if next_s < self._fires_s:
            self._start(next_s)


class GreenChannel:
    """See ``bananas.protocols.Channel``."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes the connection over; ``sock`` is not used any more."""
        family, kind = sock.family, sock.type
        self._sock = _socket(family, kind, 0, sock.detach())
        self._sock.setblocking(False)
        self._send: Callable[[Any], int] = self._sock.send
        self._recv_into: Callable[[Any], int] = self._sock.recv_into
        self._hub = gevent.get_hub()
        self._deadlines = Deadlines.here()
        self._timeout_s: float | None = None
        #: Who reads, while it waits; and whether the loop watches for it.
        self._reader: Any = None
        self._watcher: Any = self._hub.loop.io(self._sock.fileno(), _READ)
        self._is_watching = False
        #: For a shim that takes no more at the moment; None while none is needed.
        self._write_watcher: Any = None
        self._expire = self._expired
        self._poll = _poll()
        self._poll.register(self._sock.fileno(), select.POLLRDHUP)

    def sendall(self, data: bytes) -> None:
        """Send all of it or raise OSError (TimeoutError after the timeout, with part of it sent)."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> None:
        with gevent.Timeout(self._timeout_s, TimeoutError("timed out")):
            while rest:
                try:
                    rest = rest[self._send(rest) :]
                except BlockingIOError:
                    self._write_watcher = self._hub.loop.io(self._sock.fileno(), _WRITE)
                    try:
                        self._hub.wait(self._write_watcher)
                    finally:
                        watcher, self._write_watcher = self._write_watcher, None
                        if watcher is not None:
                            watcher.close()

    def recv_into(self, buffer: memoryview) -> int:
        """Read some bytes; 0 at the end of the stream; raises TimeoutError after the timeout."""
        deadline_s = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            # First: what comes from a shim is an answer, and that is never there already.
            self._wait(deadline_s)
            try:
                return self._recv_into(buffer)
            except BlockingIOError:
                continue

    def _wait(self, deadline_s: float) -> None:
        """Until there may be something to read, or the end; raises TimeoutError, or OSError when we have closed it."""
        if self._watcher is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._reader is not None:
            raise RuntimeError("two greenlets read from one channel")
        if not self._is_watching:
            self._is_watching = True
            self._watcher.start(self._readable)
        self._reader = gevent.getcurrent()
        if deadline_s < math.inf:
            self._deadlines.begin(self._expire, deadline_s)
        try:
            problem = self._hub.switch()
        finally:
            self._reader = None
            self._deadlines.end(self._expire)
        if problem is not None:
            raise problem

    def _readable(self) -> None:
        reader = self._reader
        if reader is not None:
            self._reader = None
            reader.switch(None)
        elif self._watcher is not None:
            # The end, or what nobody asked for. The loop would tell of it again and again until somebody reads.
            self._is_watching = False
            self._watcher.stop()

    def _expired(self) -> None:
        self._wake(TimeoutError("timed out"))

    def _wake(self, problem: Exception) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.switch(problem)

    def settimeout(self, value: float | None) -> None:
        """Seconds for each following call; None waits for ever."""
        self._timeout_s = value

    @property
    def is_hung_up(self) -> bool:
        """True once the sandbox has closed its end or died, or we have; does not wait and reads nothing."""
        return self._watcher is None or bool(self._poll.poll(0))

    def half_close(self) -> None:
        """Order the sandbox to end; what it still says can be read. Raises OSError when it is closed already."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Release it; who waits for it gets an OSError. Idempotent."""
        if self._watcher is None:
            return
        self._watcher.close()
        self._watcher = None
        closed = OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._write_watcher is not None:
            self._hub.cancel_wait(self._write_watcher, closed, True)
            self._write_watcher = None
        if self._reader is not None:
            self._hub.loop.run_callback(self._wake, closed)
        self._sock.close()
