"""What is deployed and who is there: versions, bundles, pools, runtimes and runners, in Redis.

A version is immutable and content-addressed; switching a function to another one is a single HSET, which
``enqueue.lua`` reads in the same step in which it creates a job. So every job runs the version that was current when it
was accepted, and no request ever sees half a deploy.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from bananas import errors, events, keys, schedules, scripts, storage
from bananas.redis_client import Connections, unix_ms
from bananas.settings import LIMITS
from bananas.spec import Deployment, PoolSpec, RuntimeInfo, Version

#: A runner that was not seen for this long is gone from the list.
RUNNER_TTL_S = 60
#: A runner not seen for this long does not count as live.
RUNNER_LIVE_S = 15


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner says of itself, every few seconds."""

    id: str
    host: str
    pid: int
    #: Empty: it serves every pool.
    pools: tuple[str, ...] = ()
    started_at_ms: int
    seen_at_ms: int
    #: Attempts in flight.
    busy: int = 0
    #: ``pool/state`` → how many sandboxes.
    sandboxes: dict[str, int] = msgspec.field(default_factory=dict)
    #: Pool → how many of its places jobs take; a sandbox may run several.
    places: dict[str, int] = msgspec.field(default_factory=dict)
    #: Devices that pools with ``gpus`` may lease.
    gpus: int = 0
    #: Pool → why it takes no jobs of it for now: ``engine`` (which does not answer) or ``gpus`` (others have them).
    held_up: dict[str, str] = msgspec.field(default_factory=dict)

    def serves(self, pool: str) -> bool:
        """True when it takes jobs of that pool."""
        return not self.pools or pool in self.pools

    def busy_in(self, pool: str) -> int:
        """The places of a pool that jobs take; one that tells no places runs one job in each sandbox."""
        return self.places.get(pool, self.sandboxes.get(f"{pool}/busy", 0))


def push_deployed(pipe: Any, runners: Iterable[bytes], function: str) -> None:
    """Have runners prepare for a function's new version, or its removal. A message that gets lost costs its next call
    some time, no more.
    """
    _push(pipe, runners, f"deployed {function}")


# Any: a pipeline of redis-py, whose annotations cannot say that it answers bytes.
def push_config_change(pipe: Any, runners: Iterable[bytes]) -> None:
    """Have runners read pools and secrets again: told at once, so that a new pool is served when its first job comes;
    the revision that each step brings is the safety net.
    """
    pipe.incr(keys.POOLS_REV)
    _push(pipe, runners, "pools")


def _push(pipe: Any, runners: Iterable[bytes], message: str) -> None:
    for runner in runners:
        inbox = keys.inbox(runner.decode())
        pipe.rpush(inbox, message)
        pipe.pexpire(inbox, 60_000)


class Registry:
    """All operations on what is deployed."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._redis = connections.commands
        self._scripts = scripts.Caller(connections)
        self._run = self._scripts.run

    # -- bundles ----------------------------------------------------------------------------------------------

    def put_bundle(self, sha256: str, data: bytes) -> bool:
        """Store an archive under its digest; False when it was there. Raises InvalidRequest on another digest."""
        actual = hashlib.sha256(data).hexdigest()
        if actual != sha256:
            raise errors.InvalidRequest(f"the body's SHA-256 is {actual}, not {sha256}; send it again")
        with self._connections.guard():
            return bool(self._redis.set(keys.bundle(sha256), data, ex=LIMITS.orphan_bundle_s, nx=True))

    def has_bundle(self, sha256: str) -> bool:
        """True when the archive is here; if no version refers to it yet, its time starts anew."""
        key = keys.bundle(sha256)
        with self._connections.guard():
            ttl = self._redis.ttl(key)
            # 1 s of margin: one that is about to go is sent again instead of being found missing at the deploy.
            return ttl == -1 or (ttl > 1 and bool(self._redis.expire(key, LIMITS.orphan_bundle_s)))

    def get_bundle(self, sha256: str) -> bytes:
        """The archive; raises UnknownBundle."""
        with self._connections.guard():
            data = self._redis.get(keys.bundle(sha256))
        if data is None:
            raise errors.UnknownBundle(f"bundle {sha256} is not in Redis; deploy the function again")
        return bytes(data)

    # -- functions --------------------------------------------------------------------------------------------

    def deploy(self, name: str, deployment: Deployment) -> tuple[Version, bool]:
        """Make this the current version of ``name``; returns it and whether anything changed.

        Raises UnknownBundle when an archive is missing, UnknownPool when a pool is.
        """
        spec, bundles = deployment.spec, deployment.bundles
        if spec.schedule is not None:
            schedules.check(name, spec.schedule)
        version = deployment.version()
        with self._connections.guard():
            if self._redis.hget(keys.function(name), "version") == version.encode():
                return self.current(name), False
            record = Version(
                function=name,
                version=version,
                spec=spec,
                bundles=bundles,
                abi=deployment.abi,
                deployed_at_ms=self._now_ms(),
            )
            self._check(record)
            self._switch(record)
        return record, True

    def rollback(self, name: str, version: str | None = None) -> tuple[Version, bool]:
        """Make a kept version the current one again; None: the one deployed before it. Returns as ``deploy`` does.

        Its place among the versions stays, so that another rollback goes further back. Raises UnknownFunction,
        VersionGone, or what ``deploy`` raises when something that it needs is gone.
        """
        with self._connections.guard():
            current = self.current(name)
            kept = self._kept(name)
            if version is None:
                at = kept.index(current.version) if current.version in kept else -1
                if at <= 0:
                    raise errors.VersionGone(f"no version of function {name!r} from before {current.version} is kept")
                version = kept[at - 1]
            elif version not in (*kept, current.version):
                raise errors.VersionGone(
                    f"version {version[:60]!r} of function {name!r} is not kept; kept are {', '.join(kept)}"
                )
            if version == current.version:
                return current, False
            record = self.version(name, version)
            self._check(record)
            self._switch(record, is_new=False)
        return record, True

    def history(self, name: str) -> list[Version]:
        """The kept versions, deployed last first; raises UnknownFunction."""
        with self._connections.guard():
            if not self._redis.exists(keys.function(name)):
                raise errors.UnknownFunction(f"no function {name!r} is deployed", function=name)
            kept = self._kept(name)
            raw = self._redis.mget([keys.version(name, version) for version in kept]) if kept else []
        return [storage.decode(text, Version, f"a version of {name!r}") for text in reversed(raw) if text is not None]

    def _kept(self, name: str) -> list[str]:
        """Oldest first."""
        return [version.decode() for version in self._redis.zrange(keys.versions(name), 0, -1)]

    def _check(self, record: Version) -> None:
        """Everything that a version needs must be there, and stays from now on."""
        name, spec = record.function, record.spec
        for sha in record.bundles.archives:
            self._redis.persist(keys.bundle(sha))
            if not self._redis.exists(keys.bundle(sha)):
                raise errors.UnknownBundle(f"bundle {sha} was not uploaded; PUT /bundles/{sha} first")
        known_pools = {"default", *self.pools()}
        for pool in (spec.pool, *spec.allow_pools):
            if pool not in known_pools:
                raise errors.UnknownPool(f"pool {pool!r} of function {name!r} does not exist; PUT /pools/{pool} first")
        self._check_secrets(name, spec.secrets)

    def _check_secrets(self, name: str, wanted: Sequence[str]) -> None:
        found = self._redis.hmget(keys.SECRETS, list(wanted)) if wanted else []
        missing = [secret for secret, value in zip(wanted, found, strict=True) if value is None]
        if missing:
            raise errors.UnknownSecret(
                f"function {name!r} needs secret {missing[0]!r}, which is not set; "
                f"`bananas secret set {missing[0]}` first"
            )

    def _switch(self, record: Version, *, is_new: bool = True) -> None:
        """``is_new``: it was deployed now, so it is the last of the kept versions."""
        spec = record.spec
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(keys.version(record.function, record.version), record.encode())
        for sha in record.bundles.archives:
            pipe.persist(keys.bundle(sha))  # in this transaction, see bananas.leftovers
        pipe.sadd(keys.FUNCTIONS, record.function)
        pipe.srem(keys.UNLISTED, record.function)
        pipe.hset(
            keys.function(record.function),
            mapping={
                "version": record.version,
                "pool": spec.pool,
                "priority": spec.priority,
                "timeout": spec.timeout_ms,
                "maxr": spec.retries.max,
                # Stamped on every job: a hash without a value over 64 bytes takes Redis a third of the memory.
                "retry": spec.retries.encode(),
                "ttl": spec.result_ttl_ms,
                "allow": ",".join(spec.allow_pools),
                "maxc": spec.max_concurrency or 0,
                "rate": spec.rate.interval_ms if spec.rate else "",
                "burst": spec.rate.most if spec.rate else "",
            },
        )
        schedules.set_in(pipe, self._scripts, record.function, spec.schedule)
        self._keep(pipe, record, is_new)
        push_deployed(pipe, self._redis.hkeys(keys.RUNNERS), record.function)
        pipe.execute()
        self._run("unpark", record.function)

    def _keep(self, pipe: Any, record: Version, is_new: bool) -> None:
        """Put it among the kept versions, and let go of those that are too old."""
        name = record.function
        kept = self._kept(name)
        if is_new:
            kept = [version for version in kept if version != record.version] + [record.version]
            pipe.zadd(keys.versions(name), {record.version: record.deployed_at_ms})
        for version in [version for version in kept if version != record.version][
            : max(0, len(kept) - LIMITS.versions)
        ]:
            pipe.zrem(keys.versions(name), version)
            pipe.expire(keys.version(name, version), LIMITS.old_version_s)

    def current(self, name: str) -> Version:
        """The version that new jobs get; raises UnknownFunction."""
        with self._connections.guard():
            version = self._redis.hget(keys.function(name), "version")
        if version is None:
            raise errors.UnknownFunction(f"no function {name!r} is deployed", function=name)
        return self.version(name, version.decode())

    def version(self, name: str, version: str) -> Version:
        """One version; raises UnknownFunction when it is not kept any more."""
        with self._connections.guard():
            raw = self._redis.get(keys.version(name, version))
        if raw is None:
            raise errors.UnknownFunction(f"version {version} of function {name!r} is not kept any more", function=name)
        return storage.decode(raw, Version, f"version {version} of function {name!r}")

    def names(self) -> list[str]:
        """Every deployed function, sorted."""
        with self._connections.guard():
            return sorted(name.decode() for name in self._redis.smembers(keys.FUNCTIONS))

    def served(self) -> dict[str, str]:
        """The id of the current version of every function, in two round trips however many there are."""
        names = self.names()
        with self._connections.guard():
            pipe = self._redis.pipeline(transaction=False)
            for name in names:
                pipe.hget(keys.function(name), "version")
            found = pipe.execute()
        return {name: version.decode() for name, version in zip(names, found, strict=True) if version}

    def versions(self) -> list[Version]:
        """The current version of every function, by name."""
        out = []
        for name in self.names():
            try:
                out.append(self.current(name))
            except errors.UnknownFunction:
                continue  # removed between the two reads
            except errors.NewerRelease as e:  # the other functions go on
                events.RECORD_NEWER(error=e)
        return out

    def remove(self, name: str) -> bool:
        """Take a function away: new jobs are refused, queued ones still run. False when it was not there."""
        with self._connections.guard():
            version = self._redis.hget(keys.function(name), "version")
            pipe = self._redis.pipeline(transaction=True)
            pipe.delete(keys.function(name), keys.versions(name))
            pipe.srem(keys.FUNCTIONS, name)
            schedules.set_in(pipe, self._scripts, name, None)
            if version:
                pipe.sadd(keys.UNLISTED, name)
                for old in {version.decode(), *self._kept(name)}:
                    pipe.expire(keys.version(name, old), LIMITS.old_version_s)
            push_deployed(pipe, self._redis.hkeys(keys.RUNNERS), name)
            pipe.execute()
            self._run("unpark", name)
        return version is not None

    # -- pools, runtimes, runners -----------------------------------------------------------------------------

    def put_pool(self, name: str, spec: PoolSpec) -> bool:
        """Create or change a pool; False when it already was like that."""
        raw = spec.encode()
        with self._connections.guard():
            if self._redis.hget(keys.POOLS, name) == raw:
                return False
            pipe = self._redis.pipeline(transaction=True)
            pipe.hset(keys.POOLS, name, raw)
            weights = {f"w:{priority}": weight for priority, weight in msgspec.structs.asdict(spec.weights).items()}
            pipe.hset(keys.stride(name), mapping={"maxc": spec.max_concurrency or 0, **weights})
            # More of it may run from now on.
            pipe.zadd(keys.bell(name), {"ring": 0})
            push_config_change(pipe, self._redis.hkeys(keys.RUNNERS))
            pipe.execute()
        return True

    def pools(self) -> dict[str, PoolSpec]:
        """Every pool; ``default`` is always among them."""
        with self._connections.guard():
            raw = self._redis.hgetall(keys.POOLS)
        pools = {}
        for name, text in raw.items():
            try:
                pools[name.decode()] = storage.decode(text, PoolSpec, f"pool {name.decode()!r}")
            except errors.NewerRelease as e:  # the other pools go on
                events.RECORD_NEWER(error=e)
        pools.setdefault("default", PoolSpec())
        return dict(sorted(pools.items()))

    def publish_runtimes(self, runtimes: dict[str, RuntimeInfo]) -> None:
        """Say what this installation's runners can run."""
        if runtimes:
            with self._connections.guard():
                self._redis.hset(keys.RUNTIMES, mapping={name: info.encode() for name, info in runtimes.items()})

    def runtimes(self) -> dict[str, RuntimeInfo]:
        """What runners last said they can run, by runtime name."""
        with self._connections.guard():
            raw = self._redis.hgetall(keys.RUNTIMES)
        return {
            name.decode(): storage.decode(text, RuntimeInfo, f"runtime {name.decode()!r}")
            for name, text in sorted(raw.items())
        }

    def announce(self, runner: RunnerInfo, counts: Mapping[str, int] | None = None) -> None:
        """Tell that a runner is alive, and add ``counts`` to the counters."""
        with self._connections.guard():
            pipe = self._redis.pipeline(transaction=True)
            pipe.hset(keys.RUNNERS, runner.id, msgspec.json.encode(runner))
            for name, number in (counts or {}).items():
                pipe.hincrby(keys.COUNTERS, name, number)
            pipe.execute()

    def retire(self, runner_id: str) -> None:
        """Tell that a runner is leaving."""
        with self._connections.guard():
            self._redis.hdel(keys.RUNNERS, runner_id)

    def runners(self) -> list[RunnerInfo]:
        """Runners seen lately, oldest first; those not seen for a minute are dropped from the list for good."""
        with self._connections.guard():
            now_ms = self._now_ms()
            infos = [msgspec.json.decode(raw, type=RunnerInfo) for raw in self._redis.hvals(keys.RUNNERS)]
            gone = [info.id for info in infos if info.seen_at_ms < now_ms - RUNNER_TTL_S * 1000]
            if gone:
                self._redis.hdel(keys.RUNNERS, *gone)
        live = [info for info in infos if info.seen_at_ms >= now_ms - RUNNER_LIVE_S * 1000]
        return sorted(live, key=lambda info: (info.started_at_ms, info.id))

    def now_ms(self) -> int:
        """Unix ms of Redis, for ``seen_at_ms``: runners' own clocks may differ."""
        with self._connections.guard():
            return self._now_ms()

    def _now_ms(self) -> int:
        return unix_ms(self._redis.time())

    def instance(self) -> str:
        """The id of this installation: 8 hex digits, made on first use, the same for every process on this Redis."""
        with self._connections.guard():
            self._redis.set(keys.INSTANCE, uuid.uuid4().hex[:8], nx=True)
            return str(self._redis.get(keys.INSTANCE).decode())
