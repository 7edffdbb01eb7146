"""The keeper's event loop: file descriptors, the callbacks that want to hear of them, and one kind of deadline."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
#: The other side has closed at least its sending half. Alone, it lets data arrive without waking us.
HANGUP = select.EPOLLRDHUP


class Loop:
    """One thread, level-triggered; a callback must not block."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._interest: dict[int, int] = {}
        self._deadlines: dict[int, tuple[float, Callable[[], None]]] = {}

    def watch(self, fd: int, interest: int, callback: Callable[[], None]) -> None:
        """Call back on these events (and errors) of ``fd``, in place of what was watched before; 0 watches nothing.

        Nothing really means nothing: epoll reports errors even to those who asked for no event, again and again.
        """
        if interest == 0:
            self.forget(fd)
        elif fd not in self._interest:
            self._epoll.register(fd, interest)
        elif self._interest[fd] != interest:
            self._epoll.modify(fd, interest)
        if interest:
            self._interest[fd] = interest
            self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Watch ``fd`` no longer; must come before its close."""
        if self._interest.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            del self._callbacks[fd]

    def at(self, key: int, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back once after ``delay_s``, unless ``cancel(key)`` comes first."""
        self._deadlines[key] = (time.monotonic() + delay_s, callback)

    def cancel(self, key: int) -> None:
        """Drop a deadline that may have passed already."""
        self._deadlines.pop(key, None)

    def run_once(self) -> None:
        """Wait for the next event or deadline and handle what is due."""
        wait_s: float | None = None
        if self._deadlines:
            wait_s = max(0.0, min(due_s for due_s, _ in self._deadlines.values()) - time.monotonic())
        for fd, _ in self._epoll.poll(wait_s):
            # An earlier callback of this round may have forgotten it.
            if callback := self._callbacks.get(fd):
                callback()
        if self._deadlines:
            now_s = time.monotonic()
            for key, (due_s, expired) in list(self._deadlines.items()):
                if due_s <= now_s and key in self._deadlines:
                    del self._deadlines[key]
                    expired()

    def close(self) -> None:
        """In the forked worker: give up the descriptor (the keeper's own loop goes on)."""
        self._epoll.close()
