"""One sandbox as its pool sees it: whom it serves, since when, how often, and how long it may."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from bananas.protocols import Binding, Sandbox, SandboxProfile, Secret
from bananas.spec import FunctionSpec, PoolSpec, Version
from runner.reasons import Start, StartReason


class SandboxState(StrEnum):
    """Where a sandbox is in its life; also the label of the gauge."""

    STARTING = "starting"
    STEM = "stem"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class Reuse:
    """How far a function lets its sandboxes be used again."""

    max_uses: int | None = None
    max_lifetime_s: float | None = None
    single_use: bool = False

    @classmethod
    def of(cls, spec: FunctionSpec) -> Self:
        """What the function says."""
        lifetime_s = None if spec.max_lifetime_ms is None else spec.max_lifetime_ms / 1000
        return cls(spec.max_uses, lifetime_s, spec.single_use)


@dataclass(frozen=True, slots=True)
class Wish:
    """Sandboxes of one version to keep ready (``min_warm``)."""

    profile: SandboxProfile
    binding: Binding
    reuse: Reuse
    init_timeout_s: float
    number: int

    @property
    def key(self) -> object:
        """As of the slots that fulfil it."""
        return (self.profile, *self.binding.identity)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pool should keep ahead of need; ``maintenance/upkeep.py`` makes it from what is deployed."""

    #: Stem profiles of the runtimes that its functions use.
    stems: tuple[SandboxProfile, ...] = ()
    wishes: tuple[Wish, ...] = ()
    #: The current version of every function; None while that is not known.
    versions: dict[str, str] | None = None


@dataclass(eq=False, slots=True)
class Slot:
    """A sandbox, or the place that an attempt holds while it waits for one."""

    key: object = None
    function: str = ""
    version: str = ""
    sandbox: Sandbox | None = None
    state: SandboxState = SandboxState.STARTING
    is_bound: bool = False
    #: How the attempt that holds it got it, why, and how long that took in ms.
    start: Start = Start.COLD
    reason: StartReason = StartReason.NONE
    wait_ms: float = 0.0
    init_ms: float = 0.0
    uses: int = 0
    reuse: Reuse = Reuse()
    #: What the ledger holds for it, in MiB.
    memory_mb: int = 0
    #: Monotonic seconds by the pool's clock.
    idle_since_s: float = 0.0
    ends_at_s: float = math.inf
    #: See ``placement.Evictable``.
    rank: int = 0

    @property
    def id(self) -> str:
        """The sandbox's, for logs."""
        return self.sandbox.id if self.sandbox is not None else "-"

    def adopt(self, stem: Slot) -> None:
        """Take over the sandbox of a stem, which is not used any more."""
        self.sandbox, self.memory_mb = stem.sandbox, stem.memory_mb
        stem.sandbox, stem.memory_mb = None, 0


def profile_of(pool: str, spec: PoolSpec, image: str, image_id: str, shim: str = "python") -> SandboxProfile:
    """The profile of a pool's stems of one runtime, whose image and shim these are."""
    return SandboxProfile(
        pool=pool,
        image=image,
        image_id=image_id,
        memory_mb=spec.memory_mb,
        cpus=spec.cpus,
        pids=spec.pids,
        tmp_mb=spec.tmp_mb,
        egress=spec.egress,
        network=spec.network,
        gpus=spec.gpus,
        runtime=spec.runtime,
        shim=shim,
    )


def fits(profile: SandboxProfile, spec: PoolSpec) -> bool:
    """True when the pool's settings still make such sandboxes."""
    return profile == profile_of(profile.pool, spec, profile.image, profile.image_id, profile.shim)


def binding_of(version: Version, secrets: dict[str, Secret]) -> Binding:
    """What binds a stem to a version."""
    return Binding(
        function=version.function,
        version=version.version,
        handler=version.spec.handler,
        code=version.bundles.code,
        deps=version.bundles.deps,
        env=dict(version.spec.env),
        secrets=secrets,
        egress=version.spec.egress,
        command=version.spec.command,
    )
