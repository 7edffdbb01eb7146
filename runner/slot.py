"""One sandbox as its pool sees it: whom it serves, since when, how often, and how long it may. And the seats in it.

An attempt holds a *seat*. Most sandboxes have one; those of a function with ``calls_per_sandbox`` have several, whose
calls run at once and end together when the sandbox does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from gevent.event import Event

from bananas.protocols import Binding, ExitInfo, Sandbox, SandboxProfile, Secret
from bananas.spec import FunctionSpec, PoolSpec, Version
from runner.reasons import EndReason, Start, StartReason


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
    #: How many of its calls may run in one sandbox at once.
    calls: int = 1

    @classmethod
    def of(cls, spec: FunctionSpec) -> Self:
        """What the function says."""
        lifetime_s = None if spec.max_lifetime_ms is None else spec.max_lifetime_ms / 1000
        return cls(spec.max_uses, lifetime_s, spec.single_use, spec.calls_per_sandbox)


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
    #: ``Binding.identity`` of these versions with the secrets as they are now, by function; only of those with secrets.
    identities: dict[str, tuple[object, ...]] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Slot:
    """A sandbox, or the place that an attempt takes while it waits for one."""

    key: object = None
    function: str = ""
    version: str = ""
    sandbox: Sandbox | None = None
    state: SandboxState = SandboxState.STARTING
    is_bound: bool = False
    #: The attempts that are in it, or wait until it is there; and how many there ever were.
    seats: list[Seat] = field(default_factory=list, repr=False)
    uses: int = 0
    reuse: Reuse = Reuse()
    #: Why it takes no more calls: it ends with the last of those that run.
    retired: EndReason | None = None
    #: Set once the code is loaded, or never will be; ``failure`` then says why, if the code is to blame.
    settled: Event = field(default_factory=Event)
    failure: Exception | None = None
    #: The seat for whose sake it was ended with all others in it, and what became of that call.
    culprit: Seat | None = None
    cause: str = ""
    #: Its end: ordered; how many calls that ended; everything in it is dead, and how that came.
    is_ending: bool = False
    ended_calls: int = 0
    dead: Event = field(default_factory=Event)
    exit: ExitInfo = field(default_factory=ExitInfo)
    #: The pool's settings that it was last found to fit.
    fitted: PoolSpec | None = None
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
        self.sandbox, self.memory_mb, self.fitted = stem.sandbox, stem.memory_mb, None
        stem.sandbox, stem.memory_mb = None, 0

    def fits(self, spec: PoolSpec) -> bool:
        """Do these settings of its pool still make such sandboxes? Looked into once for each settings."""
        if self.sandbox is not None and self.fitted is not spec and fits(self.sandbox.profile, spec):
            self.fitted = spec
        return self.fitted is spec

    def has_room(self, now_s: float) -> bool:
        """May one more call begin in it?"""
        is_used_up = self.reuse.max_uses is not None and self.uses >= self.reuse.max_uses
        is_over = self.retired is not None or self.is_ending or self.ends_at_s <= now_s
        return len(self.seats) < self.reuse.calls and not is_used_up and not is_over

    def seat(self, start: Start, reason: StartReason = StartReason.NONE) -> Seat:
        """Take a seat in it; the caller has seen that there is room."""
        self.uses += 1
        seat = Seat(self, start, reason, self.uses)
        self.seats.append(seat)
        return seat


@dataclass(eq=False, slots=True)
class Seat:
    """What an attempt holds: a place for one call in a sandbox, how it got it, why, and how long that took."""

    slot: Slot
    start: Start
    reason: StartReason
    #: The how manieth call of the sandbox this is; unique among them.
    nth_use: int
    wait_ms: float = 0.0
    init_ms: float = 0.0

    @property
    def sandbox(self) -> Sandbox | None:
        """None until there is one."""
        return self.slot.sandbox

    @property
    def victim_of(self) -> str:
        """What became of another call, for whose sake this one's sandbox was ended; empty when that is not so."""
        return self.slot.cause if self.slot.culprit is not self else ""

    def leave(self) -> None:
        """Idempotent."""
        if self in self.slot.seats:
            self.slot.seats.remove(self)

    def blame(self, cause: str) -> None:
        """The sandbox is about to be ended because of this call; ``cause`` continues "another call in it"."""
        if self.slot.culprit is None:
            self.slot.culprit, self.slot.cause = self, cause

    def interrupt(self, cause: str) -> None:
        """End the call from another greenlet, at once, and with it the sandbox."""
        self.blame(cause)
        self.slot.retired = self.slot.retired or EndReason.ABANDONED
        if self.slot.sandbox is not None:
            self.slot.sandbox.interrupt()


class Bindings:
    """Made once for each version without secrets, whose values are not to be kept any longer than a call needs."""

    _MOST = 2000

    def __init__(self) -> None:
        #: By function and version.
        self._made: dict[tuple[str, str], tuple[Version, Binding, Reuse]] = {}

    def of(self, version: Version, secrets: dict[str, Secret]) -> tuple[Binding, Reuse]:
        """What binds a stem to the version with these secrets, and how far it may be used again."""
        if secrets:
            return binding_of(version, secrets), Reuse.of(version.spec)
        made = self._made.get((version.function, version.version))
        if made is None or made[0] is not version:
            if len(self._made) >= self._MOST:
                self._made.clear()
            made = (version, binding_of(version, {}), Reuse.of(version.spec))
            self._made[version.function, version.version] = made
        return made[1], made[2]


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
        calls=version.spec.calls_per_sandbox,
    )
