"""Connections to Redis, and the one place where its errors become ours.

Three clients over one URL, since redis-py breaks every call that blocks longer than the socket timeout: *commands* and
*once* answer within 5 seconds or fail, *blocking* gets its own time plus 5 seconds. *commands* quietly repeats what a
dead connection lost; the others never send a call again by themselves: a pop or a claim that was sent twice could drop
what it took. What every job needs goes a shorter way (``bananas.redis_wire``) under the same rules.

The URL may name one server, a socket, sentinels or a cluster (``bananas.redis_url``); behind sentinels or in a cluster
every new connection goes to the server that takes our writes at that moment (``bananas.redis_nodes``), so that a
failover is a few seconds of RedisUnavailable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bananas import redis_nodes, redis_url
from bananas.errors import RedisUnavailable
from bananas.redis_url import RedisUrl, safe_url
from bananas.redis_wire import Wire

__all__ = ("OLDEST_SERVER", "Connections", "is_too_old", "safe_url")

#: A command that takes longer has failed.
COMMAND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
#: The longest block that callers may ask for.
BLOCK_S = 5.0
_POOL_CONNECTIONS = 64
#: How a server refuses for now: it cannot write to its disk or to enough replicas, or a script holds it. In an error
#: of a script, Redis 6.2 has the word in the middle of the text.
_NO_WRITES = re.compile(
    r"(?:^|: -)(?:MISCONF|NOREPLICAS|UNBLOCKED|READONLY|BUSY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN)\b"
)
_REFUSALS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.AskError,  # our slot is being moved to another node
    redis.exceptions.NoPermissionError,
)


#: The first with the commands that the scripts need.
OLDEST_SERVER = (6, 2)


def unix_ms(answer: tuple[int, int]) -> int:
    """Unix ms of what the command TIME answers: seconds, and microseconds within the second.

    >>> unix_ms((1_764_000_000, 123_999))
    1764000000123
    """
    return answer[0] * 1000 + answer[1] // 1000


def is_too_old(version: str) -> bool:
    """True for a server that lacks commands we need. Valkey tells the Redis version that it is compatible with.

    >>> is_too_old("6.0.16"), is_too_old("6.2.0"), is_too_old("10.0")
    (True, False, False)
    """
    return tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER


@contextmanager
def translate(url: RedisUrl) -> Iterator[None]:
    """Turn redis-py's errors into RedisUnavailable; a server that refuses writes counts as unavailable too."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as e:
        problem = _problem(e)
        if problem is None:
            raise
        text = url.scrub(problem)
        # The cause is shown with the error in logs: not when it holds what must stay secret.
        raise RedisUnavailable(f"Redis at {url.shown} {text}") from (e if text == problem else None)


def _problem(e: Exception) -> str | None:
    """What is wrong with Redis; None when it is our call that is wrong."""
    if isinstance(e, redis_nodes.NotTheOwnerError):
        return f"takes no writes: {e}; after a failover another server does in a moment"
    if isinstance(e, redis.exceptions.AuthenticationError):
        return f"refuses the user or password of BANANAS_REDIS_URL: {e}"
    if isinstance(e, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | OSError):
        return f"does not answer: {e}; is it running?"
    if isinstance(e, redis.exceptions.MovedError):
        return (
            f"is a node of a cluster and has not the slot of our keys (it is at {e.node_addr}); "
            "set BANANAS_REDIS_URL to redis+cluster://host:port,host2:port2"
        )
    if isinstance(e, _REFUSALS) or _NO_WRITES.search(str(e)):
        return f"takes no writes: {e}"
    return None


class Connections:
    """The connection pools of one process; cheap to create, connects on first use."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError for a URL that is not valid."""
        self.url = url
        self._parsed = redis_url.parse(url)
        self._parsed.check_files()
        self._finder = redis_nodes.finder_of(self._parsed)
        # One quiet repeat covers connections that died while idle in the pool. Every command sent through it
        # may safely run twice.
        self.commands = self._client(COMMAND_TIMEOUT_S, Retry(NoBackoff(), 1, (redis.exceptions.ConnectionError,)))
        # For calls that must not run twice: pops, and the step of a runner (a repeated claim would be lost).
        self.once = self._client(COMMAND_TIMEOUT_S, Retry(NoBackoff(), 0))
        self.blocking = self._client(BLOCK_S + COMMAND_TIMEOUT_S, Retry(NoBackoff(), 0))
        #: The short way for what every job needs: scripts, and pops that block.
        self.wire = self._wire(COMMAND_TIMEOUT_S)
        self.blocking_wire = self._wire(BLOCK_S + COMMAND_TIMEOUT_S)

    # Any: redis-py's annotations cannot say that a client without decode_responses answers bytes.
    def _client(self, timeout_s: float, retry: Retry) -> Any:
        return redis.Redis(connection_pool=self._pool(timeout_s, retry))

    def _wire(self, timeout_s: float) -> Wire:
        return Wire(self._pool(timeout_s, Retry(NoBackoff(), 0)), has_finder=self._finder is not None)

    def _pool(self, timeout_s: float, retry: Retry) -> Any:
        url = self._parsed
        where: dict[str, Any] = (
            {"path": url.path} if url.kind == "unix" else {"socket_connect_timeout": CONNECT_TIMEOUT_S}
        )
        if url.kind == "server":
            [(where["host"], where["port"])] = url.nodes
        pool_class: Any = redis.BlockingConnectionPool
        return pool_class(
            connection_class=redis_nodes.connection_class(url),
            finder=self._finder,
            max_connections=_POOL_CONNECTIONS,
            timeout=COMMAND_TIMEOUT_S,
            socket_timeout=timeout_s,
            protocol=2,
            retry=retry,
            db=url.db,
            **where,
            **url.login(),
            **url.tls_arguments(),
        )

    def guard(self) -> AbstractContextManager[None]:
        """``with connections.guard():`` around every use of a client."""
        return translate(self._parsed)

    def ping(self) -> None:
        """Raises RedisUnavailable unless the server answers."""
        with self.guard():
            self.once.ping()

    def close(self) -> None:
        """Close every connection."""
        for client in (self.commands, self.once, self.blocking):
            client.close()
            client.connection_pool.disconnect()
        for wire in (self.wire, self.blocking_wire):
            wire.close()
