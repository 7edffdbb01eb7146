"""gunicorn's gevent worker, but for its end: a stop does not wait for connections on which nothing happens.

Between requests a keep-alive connection holds its place in the worker's pool, and gunicorn waits for all places. Here
idle connections are closed when the stop begins, long polls are answered with what is known, calls in flight go on, and
those still there shortly before the grace is over get a 503.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, Final

from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from gateway.wait import Waiters  # not at run time: the master imports this file before anything is patched

#: Before the grace is over, so that the last answers still get out; the worker looks once in a second.
ANSWER_S: Final = 2.0


class Worker(GeventWorker):  # type: ignore[misc]
    """One gateway process. ``notify`` is called every second by gunicorn, also while it stops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Connections between two requests.
        self._idle: set[socket.socket] = set()
        self._stopping_since_s: float | None = None

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """One connection."""
        self._idle.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> Any:
        """One request on it."""
        self._idle.discard(sock)
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            self._idle.add(sock)

    def notify(self) -> None:
        """Tell the master that this process lives; while stopping, help its requests to their end."""
        super().notify()
        if not self.alive:
            self._help_to_end()

    def _help_to_end(self) -> None:
        waiters: Waiters = self.wsgi.extensions["bananas.waiters"]
        now_s = time.monotonic()
        if self._stopping_since_s is None:
            self._stopping_since_s = now_s
        for connection in list(self._idle):
            try:
                # What has arrived is still read and answered; then the parser sees the end.
                connection.shutdown(socket.SHUT_RD)
            except OSError:
                self._idle.discard(connection)  # it has ended by itself
        waiters.let_go()
        if now_s - self._stopping_since_s >= self.cfg.graceful_timeout - ANSWER_S:
            waiters.stop()
