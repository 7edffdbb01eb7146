"""The ends of jobs that one gateway process waits for, as they come to its reply list. ``gateway.wait`` reads them.

Several pops are on their way at any time, so Redis gives the next replies without being asked again.
"""

from __future__ import annotations

import redis

from bananas import codec
from bananas.job import Reply
from bananas.redis_client import Connections
from bananas.redis_wire import Repeated


class Replies:
    """One reply list. What it has popped belongs to whoever calls ``pop``; nobody else may read the list."""

    def __init__(self, connections: Connections, reply_list: str, block_s: float, limit: int, ahead: int) -> None:
        """Each pop blocks up to ``block_s`` for a reply and then takes at most ``limit`` that are there; up to
        ``ahead`` pops are on their way, and what they bring together may lie in a socket's buffers."""
        self._connections = connections
        self._list = reply_list
        self._block_s = block_s
        self._limit = limit
        self._pops = Repeated(
            connections.blocking_wire, ("BLMPOP", block_s, 1, reply_list, "LEFT", "COUNT", limit), ahead
        )
        #: Redis 7 pops many at once; 6.2 takes two calls.
        self._has_blmpop = True

    def pop(self) -> list[Reply]:
        """The next ones; none when none came in time. Raises RedisUnavailable; what was on its way is lost."""
        with self._connections.guard():
            return [codec.reply(message) for message in self._messages()]

    def _messages(self) -> list[bytes]:
        if self._has_blmpop:
            try:
                popped = self._pops.next()
                return list(popped[1]) if popped else []
            except redis.exceptions.ResponseError as e:
                if "unknown command" not in str(e).lower():
                    raise
                self._has_blmpop = False
        first = self._connections.blocking.blpop([self._list], timeout=self._block_s)
        if first is None:
            return []
        return [first[1], *(self._connections.once.lpop(self._list, self._limit) or [])]
