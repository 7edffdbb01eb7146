"""The warm sandboxes of one pool: who is idle, who is busy, who comes and goes. ``placement.py`` decides, this applies.

The reuse contract. A sandbox serves one version of one function and is used again after ``ok`` and ``error``. It is
destroyed, never to be used again, after: a timeout, a crash, running out of memory, a protocol violation, a failed
load, a call that left processes running, ``max_uses`` calls, a change of the pool's settings, and
``idle_timeout`` without a call. An attempt that is cancelled or has lost its lease destroys its sandbox too.

Every greenlet of the runner may call in here; state only changes between two points where greenlets switch, so it
needs no lock. ``total`` counts idle, busy and starting ones and never exceeds ``concurrency``, apart from those being
destroyed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from bananas.protocols import Binding, Clock, ExitInfo, Sandbox, SandboxFactory, SandboxProfile
from bananas.spec import PoolSpec
from runner import placement

log = logging.getLogger(__name__)

OnLog = Callable[[bytes], None]


class SandboxState(StrEnum):
    """Where a sandbox is in its life; also the label of the gauge."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"


@dataclass(eq=False, slots=True)
class Slot:
    """One place of the pool and the sandbox in it, while an attempt holds it."""

    key: object
    sandbox: Sandbox | None = None
    state: SandboxState = SandboxState.STARTING
    #: ``cold``, ``stem`` or ``warm``, why, and how long it took in ms.
    start: str = "cold"
    reason: str = ""
    wait_ms: float = 0.0
    init_ms: float = 0.0
    uses: int = 0
    max_uses: int | None = None
    idle_since_s: float = 0.0


class SandboxPool:
    """All sandboxes of one pool on this runner."""

    def __init__(
        self,
        name: str,
        spec: PoolSpec,
        factory: SandboxFactory,
        gate: BoundedSemaphore,
        clock: Clock,
    ) -> None:
        """``gate`` bounds the creates of the whole runner: more at once only make each one slower."""
        self.name = name
        self.spec = spec
        self._factory = factory
        self._gate = gate
        self._clock = clock
        self._slots: list[Slot] = []
        self._idle: list[Slot] = []
        #: Claimed attempts that have not come to ``acquire`` yet.
        self._reserved = 0
        self._endings: set[gevent.Greenlet[..., Any]] = set()
        #: Set whenever a slot becomes free.
        self.freed = Event()

    # -- what the worker asks ---------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """How many attempts could be taken on now."""
        return max(0, self.spec.concurrency - self._reserved - (len(self._slots) - len(self._idle)))

    def reserve(self) -> None:
        """Keep a place for an attempt that was claimed; its greenlet calls ``unreserve`` when it gets to run."""
        self._reserved += 1

    def unreserve(self) -> None:
        """Give the kept place up, either to ``acquire`` it in the same breath or because nothing came of it."""
        self._reserved -= 1
        self.freed.set()

    def states(self) -> Counter[str]:
        """How many sandboxes are in each state."""
        counts = Counter(slot.state.value for slot in self._slots)
        counts[SandboxState.ENDING.value] += len(self._endings)
        return counts

    # -- what the executor does -------------------------------------------------------------------------------

    def acquire(self, profile: SandboxProfile, binding: Binding, max_uses: int | None) -> Slot:
        """A slot whose sandbox may serve the binding: a warm one, or a fresh stem that still has to be bound.

        The caller must have checked ``free``. Raises SandboxError or EngineUnavailable when no sandbox could be
        started; the pool is then as before.
        """
        began = time.monotonic()
        key = (profile, *binding.identity)
        for slot in [s for s in self._idle if s.key == key and s.sandbox is not None and not s.sandbox.is_alive]:
            self._end(slot, "died while idle")
        choice = placement.place(self._idle, len(self._slots), self.spec.concurrency, key)
        if choice.kind == "warm" and choice.index is not None:
            slot = self._idle.pop(choice.index)
            slot.state, slot.start, slot.reason, slot.init_ms = SandboxState.BUSY, "warm", "", 0.0
            slot.wait_ms = (time.monotonic() - began) * 1000
            return slot
        if choice.index is not None:
            self._end(self._idle[choice.index], f"evicted for {binding.function}")
        slot = Slot(key, reason=choice.reason, max_uses=max_uses)
        self._slots.append(slot)
        try:
            with self._gate:
                slot.sandbox = self._factory.create(profile)
        except BaseException:
            self._forget(slot)
            raise
        slot.state = SandboxState.BUSY
        slot.wait_ms = (time.monotonic() - began) * 1000
        return slot

    def bind(self, slot: Slot, binding: Binding, timeout_s: float, on_log: OnLog) -> None:
        """Bind a fresh slot's stem. Errors as of ``Sandbox.bind``; the caller then destroys the slot."""
        if slot.start != "warm" and slot.sandbox is not None:
            slot.init_ms = slot.sandbox.bind(binding, timeout_s, on_log)

    def release(self, slot: Slot, *, reusable: bool, why_not: str = "") -> None:
        """Give a slot back after a call; one that may not serve again is destroyed, if it was not already."""
        if slot.state is SandboxState.ENDING:
            return
        if reusable and slot.max_uses is not None and slot.uses >= slot.max_uses:
            reusable, why_not = False, "max_uses"
        if reusable and self._fits(slot):
            slot.state, slot.idle_since_s = SandboxState.IDLE, self._clock.mono_s()
            self._idle.append(slot)
            self.freed.set()
        else:
            self._end(slot, why_not or "settings changed")

    def destroy(self, slot: Slot, why: str, on_log: OnLog | None = None) -> ExitInfo:
        """End a slot's sandbox; everything in it is dead when this returns. Logs that were still on the way go to
        ``on_log``."""
        self._forget(slot)
        log.info("sandbox ended pool=%s sandbox=%s uses=%d reason=%s", self.name, _id(slot), slot.uses, why)
        return slot.sandbox.terminate(on_log) if slot.sandbox is not None else ExitInfo()

    # -- what the supervisor does -----------------------------------------------------------------------------

    def reconfigure(self, spec: PoolSpec) -> None:
        """Take new settings; idle sandboxes of the old ones go now, busy ones after their call."""
        if spec != self.spec:
            self.spec = spec
            for slot in list(self._idle):
                self._end(slot, "settings changed")

    def expire(self) -> float | None:
        """End sandboxes that were idle for too long; returns seconds until the next one would be."""
        now, timeout_s = self._clock.mono_s(), self.spec.idle_timeout_ms / 1000
        for slot in placement.expired(self._idle, now, timeout_s):
            self._end(slot, "idle_timeout")
        return placement.next_expiry_s(self._idle, now, timeout_s)

    def close(self, deadline_s: float) -> None:
        """End every idle sandbox, interrupt the busy ones (their owners destroy them), all within the deadline."""
        for slot in list(self._slots):
            if slot.state is SandboxState.IDLE:
                self._end(slot, "shutdown")
            elif slot.sandbox is not None:
                slot.sandbox.interrupt()
        gevent.joinall(list(self._endings), timeout=deadline_s)

    # -- inside -----------------------------------------------------------------------------------------------

    def _fits(self, slot: Slot) -> bool:
        profile = slot.sandbox.profile if slot.sandbox is not None else None
        return profile is not None and len(self._slots) <= self.spec.concurrency and _same(profile, self.spec)

    def _end(self, slot: Slot, why: str) -> None:
        """Destroy in the background: nobody waits for a sandbox that is of no use any more."""
        self._forget(slot)
        greenlet = gevent.spawn(self.destroy, slot, why)
        self._endings.add(greenlet)
        greenlet.link(self._endings.discard)

    def _forget(self, slot: Slot) -> None:
        slot.state = SandboxState.ENDING
        self.freed.set()
        if slot in self._slots:
            self._slots.remove(slot)
        if slot in self._idle:
            self._idle.remove(slot)


def profile_of(pool: str, spec: PoolSpec, image: str, image_id: str) -> SandboxProfile:
    """The profile of a pool's stems."""
    return SandboxProfile(
        pool=pool,
        image=image,
        image_id=image_id,
        memory_mb=spec.memory_mb,
        cpus=spec.cpus,
        pids=spec.pids,
        tmp_mb=spec.tmp_mb,
        egress=spec.egress,
    )


def _same(profile: SandboxProfile, spec: PoolSpec) -> bool:
    return profile == profile_of(profile.pool, spec, profile.image, profile.image_id)


def _id(slot: Slot) -> str:
    return slot.sandbox.id if slot.sandbox is not None else "-"
