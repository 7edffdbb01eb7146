"""The short way to Redis, for the calls that every job makes: packed once, written once, one answer read.

redis-py's own way to send a command looks for metrics, retries, maintenance and caches around each one; that took two
thirds of what a script's call costs this side. Here are only its connections: they connect, log in, find the server
after a failover (``bananas.redis_nodes``) and parse answers. Called by ``bananas.redis_client`` only, which turns the
errors into ours. Safe for threads and for greenlets.
"""

from __future__ import annotations

import select
import sys
from typing import Any, Final

import redis

#: Set for a connection on which nothing may be sent any more: an end, an error, or bytes that nobody asked for.
_UNUSABLE: Final = select.POLLIN | getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Wire:
    """Connections of one pool, each used for one command at a time; the last one used is the next one used."""

    # Any: redis-py's annotations of pools and connections leave out what is needed here.
    def __init__(self, pool: Any, *, has_finder: bool) -> None:
        """``pool`` is used by nobody else. ``has_finder``: its connections know whether their server is still right."""
        self._pool = pool
        self._has_finder = has_finder
        #: Open and between two commands. The pool counts them as in use.
        self._idle: list[Any] = []
        #: Callers that wait for the pool to give them one.
        self._wanted = 0

    def call(self, *command: Any, repeatable: bool = False) -> Any:
        """The answer, undecoded; raises what redis-py raises.

        ``repeatable``: once more when the connection broke, since the command may safely run twice.
        """
        while True:
            try:
                return self._call(command)
            except redis.exceptions.ConnectionError:
                if not repeatable:
                    raise
                repeatable = False

    def _call(self, command: tuple[Any, ...]) -> Any:
        connection = self._take()
        try:
            connection.send_packed_command(connection.pack_command(*command), check_health=False)
            answer = connection.read_response()
        except redis.exceptions.ResponseError:
            self._give(connection)
            raise
        except BaseException:  # whatever it was, an answer may be on its way that nobody waits for
            connection.disconnect()
            self._pool.release(connection)
            raise
        self._give(connection)
        return answer

    def _take(self) -> Any:
        try:
            connection = self._idle.pop()
        except IndexError:
            self._wanted += 1
            try:
                return self._pool.get_connection()
            finally:
                self._wanted -= 1
        try:
            if self._has_finder:
                connection.connect()  # closes it when its server is not the right one any more
            if connection._sock is None or not _is_usable(connection._sock.fileno()):
                connection.disconnect()
                connection.connect()
        except BaseException:
            connection.disconnect()
            self._pool.release(connection)
            raise
        return connection

    def _give(self, connection: Any) -> None:
        if self._wanted:
            self._pool.release(connection)
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close every connection."""
        self._idle.clear()
        self._pool.disconnect()


def _is_usable(fd: int) -> bool:
    """False for a connection that ended while it was idle; does not wait and reads nothing."""
    poll = _kernel_poll()()
    poll.register(fd, _UNUSABLE)
    return not poll.poll(0)


def _kernel_poll() -> Any:
    """Gevent's own would start a watcher for each look, and with a timeout of 0 there is nothing to wait for."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original("select", "poll") if monkey is not None else select.poll
