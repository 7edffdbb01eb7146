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

Where ``calls_per_sandbox`` lets several calls run in it at once, a reason to end it after a call lets no other one
begin, and it ends with the last of them. What ends it at once ends all of them: after a timeout or a cancelled call
the others go back to the queue and have used nothing up; after a crash nobody knows whose it was, so it is everyone's.

An idle one is ended after ``idle_timeout`` (``min_warm`` of a version stay), after ``max_lifetime``, soon after another
version of its function was deployed, when the pool's settings or the image change, and when its place or its memory is
needed by a waiting attempt of another function: the longest unused first. The words for each are in ``reasons.py``.

Every greenlet of the runner may call in here; state only changes between two points where greenlets switch, so it
needs no lock. Places (``concurrency``) are taken by attempts, also by those that wait for a sandbox or share one, and
by idle sandboxes; stems, and those being bound for ``min_warm``, come on top.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from random import Random, SystemRandom

import gevent
from gevent.event import Event

from bananas.errors import SandboxStartError
from bananas.protocols import Binding, Clock, ExitInfo, HandlerLoadError, SandboxFactory, SandboxProfile
from bananas.spec import PoolSpec
from runner import placement
from runner.alarm import Alarm, Setbacks
from runner.endings import Endings, OnLog
from runner.gate import Gate
from runner.ledger import Ledger
from runner.readiness import Readiness
from runner.reasons import EndReason, Start, StartReason
from runner.roster import Roster
from runner.slot import Plan, Reuse, SandboxState, Seat, Slot
from runner.slot import profile_of as profile_of
from runner.supply import WAIT_S, Supply
from runner.tally import Tally
from runner.warmups import WarmUps

#: An idle sandbox of a version that is not current any more goes after this long; queued jobs of it may still come.
STALE_S = 5.0
#: Spares are made this long after one was taken: the attempt that took it is bound and mostly done by then.
REFILL_DELAY_S = 0.1
#: How long an attempt waits for a sandbox that another one has loaded; that one has shorter deadlines.
JOIN_S = WAIT_S + 660.0


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
        self._endings = Endings(name, self._tally, self._forget)
        self._end = self._endings.soon
        self._supply = Supply(factory, gate, self._ledger, self._spare_made, self._end, self._failed)
        self._roster = Roster()
        #: What failed ahead of need: by stem profile or key.
        self.setbacks = Setbacks(clock)
        self._readiness = Readiness(self._roster, self._supply, self._ledger, self.setbacks, self._end)
        self._warm_ups = WarmUps(
            *(gate, self._supply, self._readiness.is_wanted, self._load, self._welcome, self._warm_up_failed)
        )
        #: Claimed attempts that have not come to ``acquire`` yet.
        self._reserved = 0
        self.freed = Event()  # set whenever a place becomes free
        self._ledger.join(self)

    # -- what the worker asks ---------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """How many attempts could be taken on now."""
        return max(0, self.spec.concurrency - self._reserved - self._roster.at_work)

    def reserve(self) -> None:
        """Keep a place for an attempt that was claimed; its greenlet calls ``unreserve`` when it gets to run."""
        self._reserved += 1

    def unreserve(self) -> None:
        """Give the kept place up, either to ``acquire`` it in the same breath or because nothing came of it."""
        self._reserved -= 1
        self.freed.set()

    def states(self) -> Counter[str]:
        """How many sandboxes are in each state."""
        counts = Counter(slot.state.value for slot in self._roster.slots if slot.sandbox is not None)
        counts[SandboxState.STARTING.value] += self._supply.creating.total() + len(self._warm_ups.slots)
        counts[SandboxState.STEM.value] += len(self._supply.stems)
        counts[SandboxState.ENDING.value] += len(self._endings.greenlets)
        return counts

    # -- what the executor does -------------------------------------------------------------------------------

    def acquire(self, profile: SandboxProfile, binding: Binding, reuse: Reuse = Reuse()) -> Seat:  # noqa: B008 - frozen
        """A seat in a sandbox that may serve the binding: a bound one, or a stem that still has to be.

        The caller must have checked ``free``. Raises SandboxError or EngineUnavailable when no sandbox could be
        started, HandlerLoadError or TimeoutError when another attempt could not load the code; the pool is then as
        before.
        """
        began = time.monotonic()
        key = (profile, *binding.identity)
        seat = self._beside(key) if reuse.calls > 1 else None
        seat = seat or self._warm_or_fresh(key, profile, binding, reuse)
        seat.slot.state, seat.wait_ms = SandboxState.BUSY, (time.monotonic() - began) * 1000
        self._tell_start(seat.slot, seat.start, seat.reason, seat.wait_ms)
        return seat

    def bind(self, seat: Seat, binding: Binding, timeout_s: float, on_log: OnLog) -> None:
        """Bind a seat's stem, if it is one. Errors as of ``Sandbox.bind``; the caller then destroys or releases it."""
        if not seat.slot.is_bound:
            seat.init_ms = self._load(seat.slot, binding, timeout_s, on_log)

    def release(self, seat: Seat, *, reusable: bool, why_not: EndReason = EndReason.FAILED) -> None:
        """Give a seat back after a call; a sandbox that may not serve again is ended with its last call, if it was not
        already."""
        slot = seat.slot
        seat.leave()
        if not slot.is_ending:
            slot.retired = slot.retired or (self._why_end(slot) if reusable else why_not)
            if slot.retired is None and not self._supply.hand_over(slot) and not slot.seats:
                self._rest(slot)
        self._leave(seat)

    def destroy(self, seat: Seat, why: EndReason, on_log: OnLog | None = None) -> ExitInfo:
        """End a seat's sandbox and every call in it; everything in it is dead when this returns. Logs that were still
        on the way go to ``on_log``."""
        if why is EndReason.FAILED_TIMEOUT and not seat.slot.is_ending:
            seat.blame("ran into its timeout")
        return self._endings.now(seat.slot, why, on_log)

    # -- what the upkeep and the supervisor do ------------------------------------------------------------------

    def reconfigure(self, spec: PoolSpec) -> None:
        """Take new settings; idle sandboxes that do not fit them go now, busy ones after their call."""
        self.spec = spec
        for slot in list(self._roster.idle):
            if (end := self._why_end(slot)) is not None:
                self._end(slot, end)
        self._readiness.aim(spec)
        self._alarm.by(self._clock.mono_s())

    def prepare(self, plan: Plan) -> None:
        """What to keep ahead of need from now on; ``expire`` and ``refill`` see to it."""
        if self._readiness.prepare(plan, self.spec):
            self._alarm.by(self._clock.mono_s())

    def expire(self) -> float | None:
        """End idle sandboxes whose time is over; returns seconds until the next one's would be."""
        now_s = self._clock.mono_s()
        kept = {id(slot) for slot in self._readiness.kept()}

        def timeout_s(slot: Slot) -> float:
            limit_s = self.spec.idle_timeout_ms / 1000
            if self._readiness.outdated(slot) is not None:
                return min(STALE_S, limit_s)
            return float("inf") if id(slot) in kept else limit_s

        for slot in placement.expired(self._roster.idle, now_s, timeout_s):
            is_old = slot.ends_at_s <= now_s
            self._end(slot, EndReason.MAX_LIFETIME if is_old else self._readiness.outdated(slot) or EndReason.IDLE)
        return placement.next_expiry_s(self._roster.idle, now_s, timeout_s)

    def refill(self) -> float | None:
        """Have missing stems and ``min_warm`` sandboxes started, behind waiting work; returns seconds until a failed
        one is to be tried again."""
        if self._readiness.is_closed:
            return None
        self._readiness.refill(self.spec, self._warm_ups)
        return self.setbacks.next_s()

    def close(self, deadline_s: float) -> None:
        """End every idle sandbox and stem, interrupt the busy ones (their owners destroy them), within the deadline."""
        self._readiness.close()
        self._supply.close()
        self._warm_ups.interrupt()
        for slot in list(self._roster.slots):
            if slot.state is SandboxState.IDLE:
                self._end(slot, EndReason.SHUTDOWN)
            elif slot.sandbox is not None:
                slot.sandbox.interrupt()
        deadline = time.monotonic() + deadline_s
        while pending := [*self._endings.greenlets, *self._warm_ups.greenlets, *self._supply.makers]:
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            gevent.joinall(pending, timeout=left_s)

    # -- what the ledger asks -----------------------------------------------------------------------------------

    def evictable(self) -> Sequence[Slot]:
        """Idle sandboxes, ``min_warm`` ones after the others, then stems."""
        kept = {id(slot) for slot in self._readiness.kept()}
        for slot in self._roster.idle:
            slot.rank = 1 if id(slot) in kept else 0
        for stem in self._supply.stems:
            stem.rank = 2
        return [*self._roster.idle, *self._supply.stems]

    def evict(self, victim: placement.Evictable, why: EndReason = EndReason.MEMORY) -> None:
        """End one of them."""
        slot = next(slot for slot in self.evictable() if slot is victim)
        if slot in self._supply.stems:
            self._supply.stems.remove(slot)
        self._end(slot, why)

    # -- inside: attempts ---------------------------------------------------------------------------------------

    def _beside(self, key: object) -> Seat | None:
        """A seat in a sandbox that runs other calls of the key, or is being loaded for one; None when there is none.
        Raises why the code did not load."""
        while True:
            slot = placement.fullest(self._roster.open_to(key, self._clock.mono_s()))
            if slot is None:
                return None
            if slot.is_bound and slot.sandbox is not None and not slot.sandbox.is_alive:
                slot.retired = EndReason.DIED
                continue
            seat = slot.seat(Start.WARM, StartReason.SHARED)
            try:
                is_settled = slot.is_bound or slot.settled.wait(timeout=JOIN_S)
                if slot.is_bound and slot.retired is None and not slot.is_ending:
                    return seat
            except BaseException:
                self._leave(seat)
                raise
            self._leave(seat)
            if slot.failure is not None:
                raise slot.failure
            if not is_settled:
                raise SandboxStartError(f"the sandbox of another attempt was not ready within {JOIN_S:g} s")

    def _warm_or_fresh(self, key: object, profile: SandboxProfile, binding: Binding, reuse: Reuse) -> Seat:
        while True:
            choice = placement.place(
                self._roster.idle, self._roster.places, self.spec.concurrency, key, self._readiness.kept
            )
            if choice.index is None:
                break
            slot = self._roster.idle[choice.index]
            if choice.kind == "fresh":
                self._end(slot, EndReason.CAPACITY)
                break
            if slot.sandbox is not None and slot.sandbox.is_alive:
                self._roster.idle.pop(choice.index)
                return slot.seat(Start.WARM)
            self._end(slot, EndReason.DIED)
        is_known = self._roster.knows(key)
        slot = Slot(key, binding.function, binding.version, reuse=reuse)
        self._roster.add(slot)
        try:
            seat = slot.seat(Start.COLD)
            return self._fresh(seat, profile, StartReason.ALL_BUSY if is_known else StartReason.NONE_IDLE)
        except BaseException:
            self._forget(slot)
            raise

    def _fresh(self, seat: Seat, profile: SandboxProfile, why: StartReason) -> Seat:
        """The seat with a stem behind it; or one in another, bound sandbox, that came free meanwhile."""
        stem = self._supply.take(profile)
        if stem is not None:
            seat.start, seat.reason = Start.STEM, why
        else:
            seat.reason = StartReason.NO_STEM if self.spec.stems else StartReason.STEMS_OFF
            got = self._supply.wait(profile, seat.slot.key)
            if isinstance(got, Seat):
                self._forget(seat.slot)
                return got
            stem = got
            # The engine makes them again: what failed ahead of need need not wait any longer.
            self.setbacks.succeeded(profile)
        self._alarm.by(self._clock.mono_s() + REFILL_DELAY_S)
        seat.slot.adopt(stem)
        return seat

    def _load(self, slot: Slot, binding: Binding, timeout_s: float, on_log: OnLog) -> float:
        """Bind the slot's stem; returns the ms that took. Errors as of ``Sandbox.bind``."""
        assert slot.sandbox is not None
        try:
            init_ms = slot.sandbox.bind(binding, timeout_s, on_log)
        except TimeoutError as e:
            words = f"loading the code took longer than init_timeout ({round(timeout_s * 1000)} ms)"
            slot.failure = TimeoutError(words)
            raise slot.failure from e
        except HandlerLoadError as e:
            slot.failure = e
            raise
        slot.is_bound = True
        slot.ends_at_s = self._clock.mono_s() + placement.lifetime_s(slot.reuse.max_lifetime_s, self._rng.random())
        slot.settled.set()
        return init_ms

    def _why_end(self, slot: Slot) -> EndReason | None:
        """Why a slot whose call went well may not serve again; None when it may."""
        if slot.reuse.single_use and slot.uses:
            return EndReason.SINGLE_USE
        if slot.reuse.max_uses is not None and slot.uses >= slot.reuse.max_uses:
            return EndReason.MAX_USES
        if slot.ends_at_s <= self._clock.mono_s():
            return EndReason.MAX_LIFETIME
        if self._readiness.is_closed:
            return EndReason.SHUTDOWN
        if not slot.fits(self.spec):
            return EndReason.POOL_CHANGED
        return EndReason.CAPACITY if not slot.seats and self._roster.places > self.spec.concurrency else None

    def _rest(self, slot: Slot) -> None:
        now_s = self._clock.mono_s()
        self._roster.rest(slot, now_s)
        timeout_s = self.spec.idle_timeout_ms / 1000
        if self._readiness.outdated(slot) is not None:
            timeout_s = min(STALE_S, timeout_s)
        self._alarm.by(min(slot.ends_at_s, now_s + timeout_s))
        self._ledger.make_room(0)

    # -- inside: ahead of need ----------------------------------------------------------------------------------

    def _welcome(self, slot: Slot, wait_ms: float) -> None:
        """A ``min_warm`` sandbox is ready: attempts may have been waiting for it."""
        self._tell_start(slot, Start.MIN_WARM, wait_ms=wait_ms)
        self.setbacks.succeeded(slot.key)
        self._roster.add(slot)
        while slot.has_room(self._clock.mono_s()) and self._supply.hand_over(slot):
            slot.state = SandboxState.BUSY
        if slot.seats:
            return
        if (end := self._why_end(slot)) is not None:
            self._end(slot, end)
        else:
            self._rest(slot)

    def _warm_up_failed(self, slot: Slot, why: EndReason) -> None:
        self._end(slot, why)
        self._failed(slot.key)

    def _spare_made(self, stem: Slot) -> None:
        stem.idle_since_s = self._clock.mono_s()
        self.setbacks.succeeded(stem.sandbox.profile if stem.sandbox is not None else None)
        self._tell_start(stem, Start.SPARE)

    def _tell_start(
        self, slot: Slot, start: Start, reason: StartReason = StartReason.NONE, wait_ms: float = 0.0
    ) -> None:
        self._tally.started(self.name, slot.function, slot.id, start, reason, wait_ms)

    def _failed(self, what: object) -> None:
        self._alarm.by(self.setbacks.failed(what))

    # -- inside: ends -------------------------------------------------------------------------------------------

    def _leave(self, seat: Seat) -> None:
        """Give a seat up; a sandbox that takes no more calls ends with the last one, or at once if none can run."""
        seat.leave()
        if seat.slot.retired is not None and not (seat.slot.seats and seat.slot.is_bound):
            self._end(seat.slot, seat.slot.retired)
        self.freed.set()

    def _forget(self, slot: Slot) -> None:
        slot.state = SandboxState.ENDING
        slot.settled.set()
        self._ledger.give(slot.memory_mb)
        slot.memory_mb = 0
        if self._roster.remove(slot):
            self.freed.set()
        # There is room now, in this pool or in memory.
        self._alarm.by(self._clock.mono_s() + REFILL_DELAY_S)
