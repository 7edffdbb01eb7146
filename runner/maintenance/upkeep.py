"""Keeps what is ready ahead of calls: ends idle sandboxes in time, has stems and ``min_warm`` ones started.

Decides which runtimes and functions each pool prepares for, from what is deployed; how many and when is the pool's. One
role for all pools of a runner. It sleeps until the next expiry; a change, a taken stem or an end wakes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import gevent

from bananas import events
from bananas.errors import BananasError, EngineUnavailable, ImageMissing, RedisUnavailable, SecretUnavailable
from bananas.protocols import SandboxProfile
from bananas.spec import FunctionSpec, Version
from runner.alarm import Alarm
from runner.catalog import Catalog
from runner.ledger import Ledger
from runner.pool import SandboxPool
from runner.service import GreenletService
from runner.slot import Plan, Reuse, Wish, binding_of

#: Without any reason to look.
_LONGEST_S = 600.0
_MOST_WARNINGS = 1000
#: After Redis or the engine did not answer.
_AGAIN_S = 2.0


class Upkeep(GreenletService):
    """See the module."""

    name = "upkeep"

    def __init__(
        self,
        on_crash: Callable[[str, BaseException], None],
        catalog: Catalog,
        pools: dict[str, SandboxPool],
        served: Callable[[], dict[str, str]],
        fetch: Callable[[str], object],
        alarm: Alarm,
        ledger: Ledger,
    ) -> None:
        """``served`` gives the current version of every function, ``fetch`` brings a bundle to this host."""
        super().__init__(on_crash)
        self._catalog = catalog
        self._pools = pools
        self._served = served
        self._fetch = fetch
        self._alarm = alarm
        self._ledger = ledger
        self._is_stale = True
        #: Functions that were deployed lately; their bundles are fetched before a call comes.
        self._deployed: set[str] = set()
        self._told: set[str] = set()

    # -- what others do ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Functions, pools, secrets or runtimes may have changed."""
        self._is_stale = True
        self.wake()

    def deployed(self, function: str) -> None:
        """A function was deployed or removed."""
        self._deployed.add(function)
        self.refresh()

    def wake(self) -> None:
        """Look now."""
        self._alarm.by(-math.inf)

    # -- the role ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn after turn until stopped."""
        while not self.stopping.is_set():
            self._alarm.sleep(self._turn())

    def _turn(self) -> float:
        """Everything that is due; returns the seconds until the next turn."""
        if self._is_stale:
            self._is_stale = False
            try:
                self._prepare()
            except (RedisUnavailable, EngineUnavailable) as e:
                events.UPKEEP_WAITS(error=e)
                self._is_stale = True
        waits = [_AGAIN_S if self._is_stale else _LONGEST_S]
        for pool in list(self._pools.values()):
            waits += [seconds for seconds in (pool.expire(), pool.refill()) if seconds is not None]
        return min(waits)

    def _prepare(self) -> None:
        current = self._served()
        versions = []
        for name, version_id in current.items():
            try:
                versions.append(self._catalog.version(name, version_id))
            except RedisUnavailable:
                raise
            except BananasError as e:  # removed between the two reads
                events.UPKEEP_SKIPPED(function=name, error=e)
        identities = self._identities(versions)
        for pool in list(self._pools.values()):
            pool.prepare(Plan(self._stems(pool, versions), self._wishes(pool, versions), current, identities))
        self._warn()
        deployed, self._deployed = self._deployed, set()
        for version in versions:
            if version.function in deployed and not self._pools.keys().isdisjoint(_pools_of(version.spec)):
                gevent.spawn(self._prefetch, version)

    def _identities(self, versions: list[Version]) -> dict[str, tuple[object, ...]]:
        """What the sandboxes of functions with secrets must agree in by now."""
        found = {}
        for version in versions:
            if version.spec.secrets:
                try:
                    found[version.function] = binding_of(version, self._catalog.secrets(version)).identity
                except SecretUnavailable as e:  # its next call says so, too
                    self._say(f"function {version.function}: {e}")
        return found

    def _stems(self, pool: SandboxPool, versions: list[Version]) -> tuple[SandboxProfile, ...]:
        """One profile for each runtime in use, and for ``python`` in the default pool before anything is deployed."""
        profiles = {}
        for version in versions:
            if pool.name not in _pools_of(version.spec):
                continue
            if version.spec.contract == "http" or version.spec.runtime in self._catalog.runtimes:
                try:
                    profiles[self._catalog.profile(pool.name, version)] = True
                except ImageMissing as e:
                    self._say(str(e))
        python = self._catalog.runtimes.get("python")
        if pool.name == "default" and python is not None:
            profiles[self._catalog.profile_on(pool.name, python)] = True
        return tuple(profiles)

    def _wishes(self, pool: SandboxPool, versions: list[Version]) -> tuple[Wish, ...]:
        wishes = []
        for version in versions:
            spec = version.spec
            number = pool.spec.min_warm if spec.min_warm is None else spec.min_warm
            if spec.pool != pool.name or not number:
                continue
            try:
                profile = self._catalog.profile(pool.name, version)
                binding = binding_of(version, self._catalog.secrets(version))
            except (RedisUnavailable, EngineUnavailable):
                raise
            except BananasError as e:
                self._say(f"min_warm of function {version.function}: {e}")
                continue
            wishes.append(Wish(profile, binding, Reuse.of(spec), spec.init_timeout_ms / 1000, number))
        asked = sum(wish.number for wish in wishes)
        if asked > pool.spec.concurrency:
            self._say(
                f"min_warm asks for {asked} sandboxes in pool {pool.name!r}, which has {pool.spec.concurrency} places; "
                "the rest is started when places come free. Raise concurrency, or lower min_warm"
            )
        return tuple(wishes)

    def _warn(self) -> None:
        """What the pools could take together, beside what this runner has."""
        most_mb = sum(pool.spec.concurrency * pool.spec.memory_mb for pool in self._pools.values())
        if most_mb > self._ledger.budget_mb:
            self._say(
                f"at full load the pools' sandboxes may use {most_mb} MiB together, this runner has "
                f"{self._ledger.budget_mb} MiB for them; lower concurrency or memory of pools, serve fewer of them "
                "(BANANAS_POOLS), or raise BANANAS_SANDBOX_MEMORY"
            )

    def _say(self, warning: str) -> None:
        """Once."""
        if warning not in self._told and len(self._told) < _MOST_WARNINGS:
            self._told.add(warning)
            events.UPKEEP_ADVICE(warning=warning)

    def _prefetch(self, version: Version) -> None:
        for sha256 in (version.bundles.code, version.bundles.deps):
            try:
                if sha256 is not None:
                    self._fetch(sha256)
            except (BananasError, OSError) as e:  # the first call tries again, and tells
                events.BUNDLE_NOT_FETCHED(function=version.function, error=e)


def _pools_of(spec: FunctionSpec) -> tuple[str, ...]:
    return (spec.pool, *spec.allow_pools)
