"""gunicorn's gevent worker, but for its end: a stop does not wait for connections on which nothing happens.

Between requests a keep-alive connection holds its place in the worker's pool, and gunicorn waits for all places. Here
idle connections are closed when the stop begins, long polls are answered with what is known, calls in flight go on, and
those still there shortly before the grace is over get a 503. And what is no request gets a problem, like all else that
is refused.
"""

from __future__ import annotations

import errno
import math
import socket
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import GreenletExit
from gevent.event import Event
from gevent.monkey import get_original
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http import errors as http_errors  # type: ignore[import-untyped]
from gunicorn.util import write_nonblock  # type: ignore[import-untyped]
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

from gateway.onewrite import serve
from gateway.reading import Requests

if TYPE_CHECKING:
    from gateway.wait import Waiters  # not at run time: the master imports this file before anything is patched

#: Before the grace is over, so that the last answers still get out; the worker looks once in a second.
ANSWER_S: Final = 2.0
#: At a stop, a client that was busy so shortly before gets another answer, which tells it to close its connection.
#: Closed at once, its next request might be on its way already, and be lost.
QUIET_S: Final = 0.25
#: Between two signs of life to the master.
BEAT_S: Final = 1.0


#: Requests that one connection may have answered before others get a turn, when it sends them without a pause.
_IN_A_ROW: Final = 16
#: Stands for the time since which a connection is idle that has been ended.
_ENDED: Final = -math.inf
#: How a connection breaks when its client goes, or takes no bytes any more.
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH)
#: Not the client's doing, although they are of the same kind.
_OURS: Final = (
    http_errors.InvalidResponseHeader,
    http_errors.InvalidResponseHeaderName,
    http_errors.ConfigurationProblem,
)


class Worker(GeventWorker):  # type: ignore[misc]
    """One gateway process. gunicorn's own ``run`` sleeps through a stop; this one wakes for it, and for its end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Connections between two requests, and since when, by the monotonic clock.
        self._idle: dict[socket.socket, float] = {}
        self._stopping_since_s: float | None = None
        self._told_to_stop: Event | None = None

    def run(self) -> None:
        """Serve until a signal, then until all is answered or the grace is over. Called by gunicorn after the fork."""
        self._told_to_stop = Event()
        pools = [Pool(self.worker_connections) for _ in self.sockets]
        servers = [self._serve(listener, pool) for listener, pool in zip(self.sockets, pools, strict=True)]
        while self.alive:
            self.notify()
            self._told_to_stop.wait(BEAT_S)
        for server in servers:
            server.close()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while time.monotonic() < deadline:
            self.notify()
            if all(pool.join(BEAT_S) for pool in pools):
                return
        self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
        for server in servers:
            server.stop(timeout=1)

    def _serve(self, listener: Any, pool: Pool) -> StreamServer:
        listener.setblocking(True)
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=pool)
        if self.cfg.workers > 1:
            server.max_accept = 1  # the next connection may be another process's
        server.start()
        return server

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        super().handle_exit(sig, frame)
        if self._told_to_stop is not None:
            self._told_to_stop.set()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """One connection, which is never gunicorn's TLS or HTTP/2."""
        client.setblocking(True)
        self._idle[client] = time.monotonic()
        server, req, requests = listener.getsockname(), None, Requests(self.cfg, client, addr)
        try:
            for nth, req in enumerate(requests, 1):
                self.handle_request(server, req, client, addr)
                req = None
                if nth % _IN_A_ROW == 0:
                    gevent.sleep(0)
        except StopIteration:
            _say_goodbye(client, requests)
        except http_errors.NoMoreData as e:
            self.log.debug("a connection ends: %r", e)
        except OSError as e:
            tell = self.log.debug if e.errno in _GONE else self.log.exception
            tell("a connection broke: %s", e)
        except Exception as e:  # noqa: BLE001 - the top of the connection: its client is told
            self.handle_error(req, client, addr, e)
        finally:
            self._idle.pop(client, None)
            client.close()

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        """One request on it."""
        is_ended = self._idle.pop(sock, 0.0) == _ENDED
        app = self.wsgi.wsgi_app
        try:
            serve(
                *(app, req, sock, addr, listener_name, self.cfg),
                is_last=lambda: is_ended or not self.alive,
                is_watched=not is_ended,
            )
        except (GreenletExit, SystemExit):
            self.log.debug("a request was ended with its process")
            raise GreenletExit from None  # another answer would be taken for the one that is missing
        finally:
            self._idle[sock] = time.monotonic()

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """What could not be read as a request is answered; the connection is closed afterwards."""
        if not isinstance(exc, http_errors.ParseException) or isinstance(exc, _OURS):
            super().handle_error(req, client, addr, exc)
            return
        from gateway import problems  # its packages must not be loaded before gevent has patched what they use

        code = "request"
        if isinstance(exc, http_errors.LimitRequestLine):
            code = "uri-too-long"
        elif isinstance(exc, http_errors.LimitRequestHeaders):
            code = "headers-too-large"
        try:
            write_nonblock(client, problems.unread(code, f"the request cannot be read: {exc}"))
        except OSError as e:
            self.log.debug("the problem of a request that could not be read did not get out: %s", e)

    def notify(self) -> None:
        """Tell the master that this process lives; while stopping, help its requests to their end."""
        super().notify()
        if self.alive:
            self._end_idle(time.monotonic() - self.cfg.keepalive)
        else:
            self._help_to_end()

    def _end_idle(self, since_s: float) -> None:
        """No more requests from connections that have waited since then, or longer."""
        for connection, idle_since_s in list(self._idle.items()):
            if idle_since_s > since_s:
                break  # the later ones stand behind it
            try:
                # What has arrived is still read and answered; then the parser sees the end.
                _end_receiving(connection)
                self._idle[connection] = _ENDED
            except OSError:
                self._idle.pop(connection, None)  # it has ended by itself

    def _help_to_end(self) -> None:
        waiters: Waiters = self.wsgi.extensions["bananas.waiters"]
        now_s = time.monotonic()
        if self._stopping_since_s is None:
            self._stopping_since_s = now_s
        self._end_idle(now_s - QUIET_S)
        waiters.let_go()
        if now_s - self._stopping_since_s >= self.cfg.graceful_timeout - ANSWER_S:
            waiters.stop()


def _say_goodbye(client: socket.socket, requests: Requests) -> None:
    """Its last answer is written. Closed at once, a client that still sends might be reset before it has read that."""
    with suppress(OSError):  # it has gone
        client.shutdown(socket.SHUT_WR)
        requests.finish_body()


def _end_receiving(connection: socket.socket) -> None:
    """Wakes who waits for bytes from it, who sees an end then; gevent's own ``shutdown`` would raise there instead."""
    bare = get_original("socket", "socket")(fileno=connection.fileno())
    try:
        bare.shutdown(socket.SHUT_RD)
    finally:
        bare.detach()
