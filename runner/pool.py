"""The sandboxes of one pool: who is idle, who is busy, who comes and goes. ``placement.py`` decides, this applies;
``supply.py`` has the stems.

The reuse contract. A sandbox serves one version of one function, with one set of secrets, in one pool; it never serves
another, and a stem that is to be bound holds nothing of any function. What a call leaves in module variables and
/tmp may be there in the next one. After a call that ended with

    ok, error, permanent    it serves again, until ``max_uses`` or ``max_lifetime`` is reached; with ``single_use``
                            it is ended after this one call
    timeout, oom, crashed   it is ended, and everything in it is dead before the outcome is reported
    a protocol violation    likewise
    code that did not load  it is ended
    left-over processes     it is ended
    cancelled, lease lost   it is ended at once; nothing is reported

An idle one is ended after ``idle_timeout`` (``min_warm`` of a version stay), after ``max_lifetime``, soon after another
version of its function was deployed, when the pool's settings or the image change, and when its place or its memory is
needed by a waiting attempt of another function: the longest unused first. The words for each are in ``reasons.py``.

Every greenlet of the runner may call in here; state only changes between two points where greenlets switch, so it
needs no lock. Places (``concurrency``) are taken by bound sandboxes and by attempts that wait for one; stems, and those
being bound for ``min_warm``, come on top.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random, SystemRandom
from typing import Any

import gevent
from gevent.event import Event

from bananas.protocols import Binding, Clock, ExitInfo, SandboxFactory, SandboxProfile
from bananas.spec import PoolSpec
from runner import placement
from runner.alarm import Alarm, Setbacks
from runner.gate import Gate
from runner.ledger import Ledger
from runner.reasons import EndReason, Start, StartReason, Tally
from runner.slot import Plan, Reuse, SandboxState, Slot, Wish, fits
from runner.slot import profile_of as profile_of
from runner.supply import Supply
from runner.warmups import WarmUps

#: An idle sandbox of a version that is not current any more goes after this long; queued jobs of it may still come.
STALE_S = 5.0
#: Spares are made this long after one was taken: the attempt that took it is bound and mostly done by then.
REFILL_DELAY_S = 0.1

OnLog = Callable[[bytes], None]


class SandboxPool:
    """All sandboxes of one pool on this runner."""

    def __init__(
        self,
        name: str,
        spec: PoolSpec,
        factory: SandboxFactory,
        gate: Gate,
        clock: Clock,
        *,
        ledger: Ledger | None = None,
        tally: Tally | None = None,
        alarm: Alarm | None = None,
        rng: Random | None = None,
    ) -> None:
        """``gate``, ``ledger``, ``tally`` and ``alarm`` are the runner's, shared by its pools."""
        self.name = name
        self.spec = spec
        self._clock = clock
        self._ledger = ledger or Ledger(2**40)
        self._tally = tally or Tally()
        self._alarm = alarm or Alarm(clock)
        self._rng = rng or SystemRandom()
        self._supply = Supply(factory, gate, self._ledger, self._spare_made, self._end, self._failed)
        self._plan = Plan()
        self._slots: list[Slot] = []
        self._idle: list[Slot] = []
        self._warm_ups = WarmUps(gate, self._supply, self._is_wanted, self.bind, self._welcome, self._warm_up_failed)
        #: By stem profile or key.
        self._setbacks = Setbacks(clock)
        #: Claimed attempts that have not come to ``acquire`` yet.
        self._reserved = 0
        self._endings: set[gevent.Greenlet[..., Any]] = set()
        self._is_closed = False
        #: Set whenever a slot becomes free.
        self.freed = Event()
        self._ledger.join(self)

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
        counts = Counter(slot.state.value for slot in self._slots if slot.sandbox is not None)
        counts[SandboxState.STARTING.value] += self._supply.creating.total() + len(self._warm_ups.slots)
        counts[SandboxState.STEM.value] += len(self._supply.stems)
        counts[SandboxState.ENDING.value] += len(self._endings)
        return counts

    # -- what the executor does -------------------------------------------------------------------------------

    def acquire(self, profile: SandboxProfile, binding: Binding, reuse: Reuse = Reuse()) -> Slot:  # noqa: B008 - frozen
        """A slot whose sandbox may serve the binding: a warm one, or a stem that still has to be bound.

        The caller must have checked ``free``. Raises SandboxError or EngineUnavailable when no sandbox could be
        started; the pool is then as before.
        """
        began = time.monotonic()
        slot = self._warm_or_fresh((profile, *binding.identity), profile, binding, reuse)
        slot.state, slot.wait_ms = SandboxState.BUSY, (time.monotonic() - began) * 1000
        self._tell_start(slot)
        return slot

    def bind(self, slot: Slot, binding: Binding, timeout_s: float, on_log: OnLog) -> None:
        """Bind a slot's stem, if it is one. Errors as of ``Sandbox.bind``; the caller then destroys the slot."""
        if not slot.is_bound and slot.sandbox is not None:
            slot.init_ms = slot.sandbox.bind(binding, timeout_s, on_log)
            slot.is_bound = True
            lifetime_s = placement.lifetime_s(slot.reuse.max_lifetime_s, self._rng.random())
            slot.ends_at_s = self._clock.mono_s() + lifetime_s

    def release(self, slot: Slot, *, reusable: bool, why_not: EndReason = EndReason.FAILED) -> None:
        """Give a slot back after a call; one that may not serve again is ended, if it was not already."""
        if slot.state is SandboxState.ENDING:
            return
        end = self._why_end(slot) if reusable else why_not
        if end is not None:
            self._end(slot, end)
        elif not self._supply.hand_over(slot):
            self._rest(slot)

    def destroy(self, slot: Slot, why: EndReason, on_log: OnLog | None = None) -> ExitInfo:
        """End a slot's sandbox; everything in it is dead when this returns. Logs that were still on the way go to
        ``on_log``."""
        self._forget(slot)
        info = slot.sandbox.terminate(on_log) if slot.sandbox is not None else ExitInfo()
        if info.oom:
            why = EndReason.FAILED_OOM
        if slot.sandbox is not None:
            self._tally.ended(self.name, slot.function, slot.id, slot.uses, why)
        return info

    # -- what the upkeep and the supervisor do ------------------------------------------------------------------

    def reconfigure(self, spec: PoolSpec) -> None:
        """Take new settings; idle sandboxes that do not fit them go now, busy ones after their call."""
        self.spec = spec
        for slot in list(self._idle):
            if (end := self._why_end(slot)) is not None:
                self._end(slot, end)
        self._aim()

    def prepare(self, plan: Plan) -> None:
        """What to keep ahead of need from now on; ``expire`` and ``refill`` see to it."""
        if plan != self._plan:
            self._plan = plan
            self._setbacks.clear()
            self._aim()

    def _aim(self) -> None:
        fitting = [profile for profile in self._plan.stems if fits(profile, self.spec)]
        self._supply.aim(dict.fromkeys(fitting, self.spec.stems) if self.spec.stems else {})
        self._alarm.by(self._clock.mono_s())

    def expire(self) -> float | None:
        """End idle sandboxes whose time is over; returns seconds until the next one's would be."""
        now_s = self._clock.mono_s()
        kept = {id(slot) for slot in self._kept()}

        def timeout_s(slot: Slot) -> float:
            limit_s = self.spec.idle_timeout_ms / 1000
            if self._outdated(slot) is not None:
                return min(STALE_S, limit_s)
            return float("inf") if id(slot) in kept else limit_s

        for slot in placement.expired(self._idle, now_s, timeout_s):
            is_old = slot.ends_at_s <= now_s
            self._end(slot, EndReason.MAX_LIFETIME if is_old else self._outdated(slot) or EndReason.IDLE)
        return placement.next_expiry_s(self._idle, now_s, timeout_s)

    def refill(self) -> float | None:
        """Have missing stems and ``min_warm`` sandboxes started, behind waiting work; returns seconds until a failed
        one is to be tried again."""
        if self._is_closed:
            return None
        self._supply.refill(self._setbacks.may_try)
        wishes = {wish.key: wish for wish in self._plan.wishes if fits(wish.profile, self.spec)}
        have = Counter(slot.key for slot in self._slots if slot.sandbox is not None)
        have.update(slot.key for slot in self._warm_ups.slots)
        for key, number in placement.missing(have, {key: wish.number for key, wish in wishes.items()}).items():
            for _ in range(number if self._setbacks.may_try(key) else 0):
                if not self._ledger.fits(wishes[key].profile.memory_mb) or not self._has_place(wishes[key]):
                    break
                self._warm_ups.start(wishes[key])
        return self._setbacks.next_s()

    def close(self, deadline_s: float) -> None:
        """End every idle sandbox and stem, interrupt the busy ones (their owners destroy them), within the deadline."""
        self._is_closed = True
        self._supply.close()
        self._warm_ups.interrupt()
        for slot in list(self._slots):
            if slot.state is SandboxState.IDLE:
                self._end(slot, EndReason.SHUTDOWN)
            elif slot.sandbox is not None:
                slot.sandbox.interrupt()
        deadline = time.monotonic() + deadline_s
        while pending := [*self._endings, *self._warm_ups.greenlets, *self._supply.makers]:
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            gevent.joinall(pending, timeout=left_s)

    # -- what the ledger asks -----------------------------------------------------------------------------------

    def evictable(self) -> Sequence[Slot]:
        """Idle sandboxes, ``min_warm`` ones after the others, then stems."""
        kept = {id(slot) for slot in self._kept()}
        for slot in self._idle:
            slot.rank = 1 if id(slot) in kept else 0
        for stem in self._supply.stems:
            stem.rank = 2
        return [*self._idle, *self._supply.stems]

    def evict(self, victim: placement.Evictable, why: EndReason = EndReason.MEMORY) -> None:
        """End one of them."""
        slot = next(slot for slot in self.evictable() if slot is victim)
        if slot in self._supply.stems:
            self._supply.stems.remove(slot)
        self._end(slot, why)

    # -- inside: attempts ---------------------------------------------------------------------------------------

    def _warm_or_fresh(self, key: object, profile: SandboxProfile, binding: Binding, reuse: Reuse) -> Slot:
        while True:
            choice = placement.place(self._idle, len(self._slots), self.spec.concurrency, key, self._kept)
            if choice.index is None:
                break
            slot = self._idle[choice.index]
            if choice.kind == "fresh":
                self._end(slot, EndReason.CAPACITY)
                break
            if slot.sandbox is not None and slot.sandbox.is_alive:
                self._idle.pop(choice.index)
                slot.start, slot.reason, slot.init_ms = Start.WARM, StartReason.NONE, 0.0
                return slot
            self._end(slot, EndReason.DIED)
        is_known = any(slot.key == key for slot in self._slots)
        slot = Slot(key, binding.function, binding.version, reuse=reuse)
        self._slots.append(slot)
        try:
            return self._fresh(slot, profile, StartReason.ALL_BUSY if is_known else StartReason.NONE_IDLE)
        except BaseException:
            self._forget(slot)
            raise

    def _fresh(self, slot: Slot, profile: SandboxProfile, why: StartReason) -> Slot:
        """The slot with a stem in it; or another, bound one, that came free meanwhile."""
        stem = self._supply.take(profile)
        if stem is not None:
            slot.start, slot.reason = Start.STEM, why
            self._alarm.by(self._clock.mono_s() + REFILL_DELAY_S)
        else:
            slot.start, slot.reason = Start.COLD, StartReason.NO_STEM if self.spec.stems else StartReason.STEMS_OFF
            stem = self._supply.wait(profile, slot.key)
            if stem.is_bound:
                self._forget(slot)
                # Only now: who gave it back was still to tell how it had got it.
                stem.start, stem.reason, stem.init_ms = Start.WARM, StartReason.FREED, 0.0
                return stem
            # The engine makes them again: what failed ahead of need need not wait any longer.
            self._setbacks.succeeded(profile)
            self._alarm.by(self._clock.mono_s() + REFILL_DELAY_S)
        slot.adopt(stem)
        return slot

    def _why_end(self, slot: Slot) -> EndReason | None:
        """Why a slot whose call went well may not serve again; None when it may."""
        if slot.reuse.single_use and slot.uses:
            return EndReason.SINGLE_USE
        if slot.reuse.max_uses is not None and slot.uses >= slot.reuse.max_uses:
            return EndReason.MAX_USES
        if slot.ends_at_s <= self._clock.mono_s():
            return EndReason.MAX_LIFETIME
        if self._is_closed:
            return EndReason.SHUTDOWN
        if slot.sandbox is None or not fits(slot.sandbox.profile, self.spec):
            return EndReason.POOL_CHANGED
        return EndReason.CAPACITY if len(self._slots) > self.spec.concurrency else None

    def _rest(self, slot: Slot) -> None:
        now_s = self._clock.mono_s()
        slot.state, slot.idle_since_s = SandboxState.IDLE, now_s
        self._idle.append(slot)
        self.freed.set()
        timeout_s = self.spec.idle_timeout_ms / 1000
        if self._outdated(slot) is not None:
            timeout_s = min(STALE_S, timeout_s)
        self._alarm.by(min(slot.ends_at_s, now_s + timeout_s))
        self._ledger.make_room(0)

    # -- inside: ahead of need ----------------------------------------------------------------------------------

    def _kept(self) -> list[Slot]:
        """The idle ones that ``min_warm`` keeps."""
        busy = Counter(slot.key for slot in self._slots if slot.state is SandboxState.BUSY)
        return placement.kept(self._idle, busy, {wish.key: wish.number for wish in self._plan.wishes})

    def _outdated(self, slot: Slot) -> EndReason | None:
        """Why new jobs of its function will not come to the slot; None when they will."""
        if self._plan.versions is None:
            return None
        current = self._plan.versions.get(slot.function)
        if current == slot.version:
            return None
        return EndReason.REMOVED if current is None else EndReason.NEW_VERSION

    def _is_wanted(self, wish: Wish) -> bool:
        return not self._is_closed and wish in self._plan.wishes and self._ledger.fits(wish.profile.memory_mb)

    def _has_place(self, wish: Wish) -> bool:
        """Room in the pool without taking it from others; an idle one of the same function that is of no use any
        more makes some."""
        if len(self._slots) + len(self._warm_ups.slots) < self.spec.concurrency:
            return True
        for slot in self._idle:
            if slot.function == wish.binding.function and slot.key != wish.key:
                self._end(slot, self._outdated(slot) or EndReason.POOL_CHANGED)
                return True
        return False

    def _welcome(self, slot: Slot) -> None:
        """A ``min_warm`` sandbox is ready: an attempt may have been waiting for it."""
        self._tell_start(slot)
        self._setbacks.succeeded(slot.key)
        self._slots.append(slot)
        if self._supply.hand_over(slot):
            slot.state = SandboxState.BUSY
        elif (end := self._why_end(slot)) is not None:
            self._end(slot, end)
        else:
            self._rest(slot)

    def _warm_up_failed(self, slot: Slot, why: EndReason) -> None:
        self._end(slot, why)
        self._failed(slot.key)

    def _spare_made(self, stem: Slot) -> None:
        stem.idle_since_s = self._clock.mono_s()
        self._setbacks.succeeded(stem.sandbox.profile if stem.sandbox is not None else None)
        self._tell_start(stem)

    def _tell_start(self, slot: Slot) -> None:
        self._tally.started(self.name, slot.function, slot.id, slot.start, slot.reason, slot.wait_ms)

    def _failed(self, what: object) -> None:
        self._alarm.by(self._setbacks.failed(what))

    # -- inside: ends -------------------------------------------------------------------------------------------

    def _end(self, slot: Slot, why: EndReason) -> None:
        """Destroy in the background: nobody waits for a sandbox that is of no use any more."""
        self._forget(slot)
        _track(self._endings, self.destroy, slot, why)

    def _forget(self, slot: Slot) -> None:
        slot.state = SandboxState.ENDING
        self._ledger.give(slot.memory_mb)
        slot.memory_mb = 0
        if slot in self._idle:
            self._idle.remove(slot)
        if slot in self._slots:
            self._slots.remove(slot)
            self.freed.set()
        # There is room now, in this pool or in memory.
        self._alarm.by(self._clock.mono_s() + REFILL_DELAY_S)


def _track(group: set[gevent.Greenlet[..., Any]], run: Callable[..., Any], *args: object) -> None:
    greenlet = gevent.spawn(run, *args)
    group.add(greenlet)
    greenlet.link(group.discard)
