"""Connections to Redis, and the one place where its errors become ours.

Two kinds, since redis-py breaks every call that blocks longer than the socket timeout: *commands* answer within
5 seconds or fail, *blocking* calls get their own time plus 5 seconds. Blocking calls are never sent again by
themselves: a pop that was sent twice could drop an item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bananas.errors import ConfigError, RedisUnavailable

#: A command that takes longer has failed.
COMMAND_TIMEOUT_S = 5.0
#: The longest block that callers may ask for.
BLOCK_S = 5.0
_POOL_CONNECTIONS = 64
#: How a server begins its refusal for now: it cannot write to its disk or to enough replicas, or a script holds it.
_NO_WRITES = ("MISCONF", "NOREPLICAS", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")


#: The first with the commands that the scripts need.
OLDEST_SERVER = (6, 2)


def is_too_old(version: str) -> bool:
    """True for a server that lacks commands we need. Valkey tells the Redis version that it is compatible with.

    >>> is_too_old("6.0.16"), is_too_old("6.2.0"), is_too_old("10.0")
    (True, False, False)
    """
    return tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER


def safe_url(url: str) -> str:
    """The URL without its password, for messages."""
    return re.sub(r"//([^@/]*)@", "//***@", url)


@contextmanager
def translate(url: str) -> Iterator[None]:
    """Turn redis-py's errors into RedisUnavailable; a server that refuses writes counts as unavailable too."""
    try:
        yield
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as e:
        raise RedisUnavailable(f"Redis at {safe_url(url)} does not answer: {e}; is it running?") from e
    except redis.exceptions.ResponseError as e:
        is_refusal = isinstance(e, redis.exceptions.ReadOnlyError | redis.exceptions.OutOfMemoryError)
        if not is_refusal and not str(e).startswith(_NO_WRITES):
            raise
        raise RedisUnavailable(f"Redis at {safe_url(url)} takes no writes: {e}") from e


class Connections:
    """The connection pools of one process; cheap to create, connects on first use."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            # One quiet repeat covers connections that died while idle in the pool. Every command sent through it
            # may safely run twice.
            self.commands = self._client(COMMAND_TIMEOUT_S, Retry(NoBackoff(), 1, (redis.exceptions.ConnectionError,)))
            # For calls that must not run twice: pops, and the step of a runner (a repeated claim would be lost).
            self.once = self._client(COMMAND_TIMEOUT_S, Retry(NoBackoff(), 0))
            self.blocking = self._client(BLOCK_S + COMMAND_TIMEOUT_S, Retry(NoBackoff(), 0))
        except ValueError as e:
            raise ConfigError(f"BANANAS_REDIS_URL={safe_url(url)!r} is not valid: {e}") from e

    # Any: redis-py's annotations cannot say that a client without decode_responses answers bytes.
    def _client(self, timeout_s: float, retry: Retry) -> Any:
        pool = redis.BlockingConnectionPool.from_url(
            self.url,
            max_connections=_POOL_CONNECTIONS,
            timeout=COMMAND_TIMEOUT_S,
            socket_timeout=timeout_s,
            socket_connect_timeout=2.0,
            protocol=2,
            retry=retry,
        )
        return redis.Redis(connection_pool=pool)

    def guard(self) -> AbstractContextManager[None]:
        """``with connections.guard():`` around every use of a client."""
        return translate(self.url)

    def ping(self) -> None:
        """Raises RedisUnavailable unless the server answers."""
        with translate(self.url):
            self.once.ping()

    def close(self) -> None:
        """Close every connection."""
        for client in (self.commands, self.once, self.blocking):
            client.close()
            client.connection_pool.disconnect()
