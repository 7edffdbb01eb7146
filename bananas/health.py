"""Whether Redis can be trusted with jobs: it answers, takes writes, never evicts, and keeps what it took.

Asked by the gateway's ``/readyz`` and ``/metrics``, and by a runner when it starts. Changes nothing but the
installation's id and the format of its data, which are made on first use anyway.
"""

from __future__ import annotations

import time
import uuid
from typing import Literal

import msgspec

from bananas import keys, storage
from bananas.errors import ConfigError, RedisUnavailable
from bananas.redis_client import OLDEST_SERVER, Connections, is_too_old, safe_url

#: Sections of INFO that are looked at.
_PARTS = ("server", "persistence", "memory")


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    #: ``warning``: jobs are served, but somebody should know.
    status: Literal["ok", "warning", "failed"]
    detail: str


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator watches of a server."""

    version: str
    uptime_s: int
    #: What one question took.
    round_trip_s: float
    memory_bytes: int
    #: maxmemory; 0: none.
    memory_limit_bytes: int
    clients: int
    #: True when it may drop jobs.
    is_evicting: bool
    is_persisting: bool


class Health:
    """Looks at one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._redis = connections.commands

    def check(self) -> list[Check]:
        """All checks; stops at the first one without which the others mean nothing. Never raises for a sick Redis."""
        try:
            with self._connections.guard():
                facts = {name: value for part in _PARTS for name, value in self._redis.info(part).items()}
                # With NX an existing id stays, but a server that takes no writes refuses all the same.
                self._redis.set(keys.INSTANCE, uuid.uuid4().hex[:8], nx=True)
                self._redis.set(keys.FORMAT, storage.FORMAT, nx=True)
                unknown = self.unknown_format()
        except RedisUnavailable as e:
            return [Check("redis", "failed", str(e))]
        version = str(facts["redis_version"])
        if is_too_old(version):
            oldest = ".".join(map(str, OLDEST_SERVER))
            return [Check("redis", "failed", f"the server is {version}; {oldest} or newer is needed")]
        if unknown:
            return [Check("format", "failed", unknown)]
        return [Check("redis", "ok", "answers and takes writes"), _eviction(facts), _persistence(facts)]

    def vitals(self) -> Vitals:
        """For metrics; raises RedisUnavailable."""
        with self._connections.guard():
            began_s = time.monotonic()
            self._redis.ping()
            round_trip_s = time.monotonic() - began_s
            facts = {name: value for part in (*_PARTS, "clients") for name, value in self._redis.info(part).items()}
        return Vitals(
            version=str(facts["redis_version"]),
            uptime_s=int(facts["uptime_in_seconds"]),
            round_trip_s=round_trip_s,
            memory_bytes=int(facts["used_memory"]),
            memory_limit_bytes=int(facts.get("maxmemory", 0)),
            clients=int(facts["connected_clients"]),
            is_evicting=_eviction(facts).status != "ok",
            is_persisting=_persistence(facts).status == "ok",
        )

    def unknown_format(self) -> str:
        """Why this release must leave the data alone; empty when it need not. Raises RedisUnavailable."""
        with self._connections.guard():
            return storage.unknown_format(self._redis.get(keys.FORMAT))

    def require(self) -> list[str]:
        """Raises ConfigError for a Redis that must not be trusted with jobs; returns warnings about one that may."""
        checks = self.check()
        failed = [check.detail for check in checks if check.status == "failed"]
        if failed:
            raise ConfigError(f"Redis at {safe_url(self._connections.url)} cannot be used: {'; '.join(failed)}")
        return [check.detail for check in checks if check.status == "warning"]


def _eviction(facts: dict[str, object]) -> Check:
    policy = str(facts.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Check("eviction", "ok", "maxmemory-policy is noeviction")
    return Check(
        "eviction",
        "failed",
        f"maxmemory-policy is {policy}, so Redis may drop jobs without a word; set it to noeviction",
    )


def _persistence(facts: dict[str, object]) -> Check:
    if not facts.get("aof_enabled"):
        return Check("persistence", "warning", "appendonly is off: a restart of Redis may lose jobs that were accepted")
    if facts.get("aof_last_write_status", "ok") != "ok":
        return Check("persistence", "warning", "the last write to the append-only file failed; look at the disk")
    return Check("persistence", "ok", "the append-only file is on")
