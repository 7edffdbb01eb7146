"""The short way to Redis, for the calls that every job makes: packed once, written once, its answer read.

redis-py's own way to send a command looks for metrics, retries, maintenance and caches around each one; that took two
thirds of what a script's call costs this side. Here are only its connections: they connect, log in, find the server
after a failover (``bananas.redis_nodes``) and parse answers. Called by ``bananas.redis_client`` only, which turns the
errors into ours. Safe for threads and for greenlets.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Sequence
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
        [answer] = self.together(command)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def together(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Several commands in one write, and the answer of each; one that Redis refused has its ResponseError there.

        They run one after another, also when the first of them blocks: the second then runs in the same moment in
        which that one gets its answer. Raises what redis-py raises when the connection breaks, and never sends twice.
        """
        connection = self.take()
        try:
            connection.send_packed_command(_packed(connection, commands), check_health=False)
            answers = [_answer(connection) for _ in commands]
        except BaseException:  # whatever it was, an answer may be on its way that nobody waits for
            self.drop(connection)
            raise
        self.give(connection)
        return answers

    # -- for ``together`` and ``Repeated`` ------------------------------------------------------------------------

    def take(self) -> Any:
        """A connection that is open, and used by the caller alone until ``give`` or ``drop``."""
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
            self.drop(connection)
            raise
        return connection

    def drop(self, connection: Any) -> None:
        """Closed: nobody waits for what may still come."""
        connection.disconnect()
        self._pool.release(connection)

    def give(self, connection: Any) -> None:
        """Back, with no answer on its way."""
        if self._wanted:
            self._pool.release(connection)
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close every connection."""
        self._idle.clear()
        self._pool.disconnect()


class Repeated:
    """One blocking command again and again on a connection of its own, sent ahead: while answers come faster than they
    are taken, the next ones need no word from this side. For one greenlet or thread."""

    def __init__(self, wire: Wire, command: tuple[Any, ...], ahead: int) -> None:
        """At most ``ahead`` commands (1 to …) are sent and not answered."""
        self._wire = wire
        self._command = command
        self._ahead = ahead
        self._connection: Any = None
        #: Sent and not answered.
        self._due = 0

    def next(self) -> Any:
        """The next answer; raises what redis-py raises, after which it begins anew on another connection."""
        if self._connection is None:
            self._connection, self._due = self._wire.take(), 0
        try:
            if self._connection.is_left():
                raise redis.exceptions.ConnectionError("the server was left for another one")
            if self._due <= self._ahead // 2:
                missing = self._ahead - self._due
                data = _packed(self._connection, [self._command] * missing)
                self._connection.send_packed_command(data, check_health=False)
                self._due += missing
            answer = _answer(self._connection)
            self._due -= 1
        except BaseException:
            self.close()
            raise
        if not self._due:
            self._wire.give(self._connection)
            self._connection = None
        if isinstance(answer, Exception):
            self.close()
            raise answer
        return answer

    def close(self) -> None:
        """Give up what was sent ahead. Idempotent."""
        if self._connection is not None:
            self._wire.drop(self._connection)
            self._connection = None


# Any: what redis-py packs, and what a server answers.
def _packed(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[bytes]:
    """All of it in one piece."""
    parts = [part for command in commands for part in connection.pack_command(*command)]
    return parts if len(parts) == 1 else [b"".join(parts)]


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as e:
        return e


def _is_usable(fd: int) -> bool:
    """False for a connection that ended while it was idle; does not wait and reads nothing."""
    poll = _kernel_poll()()
    poll.register(fd, _UNUSABLE)
    return not poll.poll(0)


def _kernel_poll() -> Any:
    """Gevent's own would start a watcher for each look, and with a timeout of 0 there is nothing to wait for."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original("select", "poll") if monkey is not None else select.poll
