"""The stems of one pool: spare ones, those being made, and the attempts that wait for one.

A container is made *because* an attempt waits but not *for* it: whoever waits longest gets the next stem that fits,
and an attempt whose function gets a sandbox free meanwhile takes that instead. So a burst of short calls creates few
containers, and no create is made for an attempt that was served already. State changes only between two points where
greenlets switch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import gevent
from gevent.event import Event

from bananas import events
from bananas.errors import BananasError, SandboxStartError
from bananas.protocols import SandboxFactory, SandboxProfile
from runner.gate import Gate
from runner.ledger import Ledger, footprint_mb
from runner.reasons import EndReason, Start, StartReason
from runner.slot import SandboxState, Seat, Slot

#: How long an attempt waits for a sandbox; each create has shorter deadlines, so this passes only behind many.
WAIT_S = 300.0


class _Ticket:
    """An attempt that waits."""

    def __init__(self, profile: SandboxProfile, key: object) -> None:
        self.profile = profile
        self.key = key
        #: A stem, or a seat in a bound one.
        self.got: Slot | Seat | None = None
        self.error: Exception | None = None
        self.is_served = Event()


class Supply:
    """See the module."""

    def __init__(
        self,
        factory: SandboxFactory,
        gate: Gate,
        ledger: Ledger,
        on_spare: Callable[[Slot], None],
        end: Callable[[Slot, EndReason], None],
        on_failure: Callable[[SandboxProfile], None],
    ) -> None:
        """``on_spare`` hears of each new spare stem, ``on_failure`` of each spare one that could not be made."""
        self._factory = factory
        self._gate = gate
        self._ledger = ledger
        self._on_spare = on_spare
        self._end = end
        self._on_failure = on_failure
        self.stems: list[Slot] = []
        #: How many spare stems of each profile there should be.
        self._targets: dict[SandboxProfile, int] = {}
        self._tickets: list[_Ticket] = []
        #: Makers that wait for the gate because of an attempt; spare ones that do; creates under way.
        self._coming: Counter[SandboxProfile] = Counter()
        self._spares_coming: Counter[SandboxProfile] = Counter()
        self.creating: Counter[SandboxProfile] = Counter()
        self.makers: set[gevent.Greenlet[..., None]] = set()
        self._is_closed = False

    # -- for attempts -----------------------------------------------------------------------------------------

    def take(self, profile: SandboxProfile) -> Slot | None:
        """A spare stem, if there is one that lives."""
        for stem in reversed(self.stems):
            if stem.sandbox is not None and stem.sandbox.profile == profile:
                self.stems.remove(stem)
                if stem.sandbox.is_alive:
                    return stem
                self._end(stem, EndReason.DIED)
        return None

    def wait(self, profile: SandboxProfile, key: object) -> Slot | Seat:
        """The next stem of the profile, or a seat in the next bound one of the key. Raises what the create raised."""
        ticket = _Ticket(profile, key)
        self._tickets.append(ticket)
        self._make_as_needed(profile)
        try:
            ticket.is_served.wait(timeout=WAIT_S)
            if ticket.error is not None:
                raise ticket.error
            if ticket.got is None:
                raise SandboxStartError(
                    f"no sandbox of pool {profile.pool!r} could be had within {WAIT_S:g} s: {len(self._tickets)} "
                    "attempts wait; is the engine in trouble?"
                )
            return ticket.got
        finally:
            if ticket in self._tickets:
                self._tickets.remove(ticket)

    def hand_over(self, slot: Slot) -> bool:
        """Give a seat in a bound slot to an attempt that waits for its key; False when none does."""
        for ticket in self._tickets:
            if ticket.key == slot.key:
                self._serve(ticket, slot.seat(Start.WARM, StartReason.FREED))
                return True
        return False

    # -- ahead of need ----------------------------------------------------------------------------------------

    def aim(self, targets: Mapping[SandboxProfile, int]) -> None:
        """How many spare stems of each profile there should be from now on; others end."""
        self._targets = dict(targets)
        for stem in list(self.stems):
            profile = stem.sandbox.profile if stem.sandbox is not None else None
            if profile is None or profile not in targets:
                self._drop(stem, EndReason.POOL_CHANGED)
            elif self._spare(profile) > targets[profile]:
                self._drop(stem, EndReason.SURPLUS)

    def refill(self, is_due: Callable[[SandboxProfile], bool]) -> None:
        """Have what is missing made, behind the attempts that wait, as far as memory allows; ``is_due`` says whether
        a profile may be tried."""
        for profile, target in self._targets.items():
            if not is_due(profile) or not self._ledger.fits(footprint_mb(profile)):
                continue
            under_way = self._spare(profile) + self.creating[profile] + self._spares_coming[profile]
            for _ in range(target - under_way):
                self._spares_coming[profile] += 1
                self._spawn(profile, is_spare=True)

    def make_into(self, slot: Slot, profile: SandboxProfile) -> None:
        """Put a spare stem into the slot, or a new one; the caller has a place at the gate. Raises what create does."""
        slot.adopt(self.take(profile) or self._create(profile, is_spare=True))

    def close(self) -> None:
        """End every stem; what is still being made ends when it is done."""
        self._is_closed = True
        for stem in list(self.stems):
            self._drop(stem, EndReason.SHUTDOWN)

    # -- inside -----------------------------------------------------------------------------------------------

    def _spare(self, profile: SandboxProfile) -> int:
        return sum(s.sandbox is not None and s.sandbox.profile == profile for s in self.stems)

    def _waiting(self, profile: SandboxProfile) -> int:
        return sum(ticket.profile == profile for ticket in self._tickets)

    def _make_as_needed(self, profile: SandboxProfile) -> None:
        for _ in range(self._waiting(profile) - self.creating[profile] - self._coming[profile]):
            self._coming[profile] += 1
            self._spawn(profile, is_spare=False)

    def _spawn(self, profile: SandboxProfile, *, is_spare: bool) -> None:
        maker = gevent.spawn(self._make, profile, is_spare)
        self.makers.add(maker)
        maker.link(self.makers.discard)

    def _make(self, profile: SandboxProfile, is_spare: bool) -> None:
        try:
            stem = self._behind_gate(profile, is_spare)
        except Exception as e:  # noqa: BLE001 - whatever it is, an attempt that waits must hear of it
            self._failed(profile, is_spare, e)
        else:
            if stem is not None:
                self._offer(profile, stem)
        self._make_as_needed(profile)

    def _behind_gate(self, profile: SandboxProfile, is_spare: bool) -> Slot | None:
        coming = self._spares_coming if is_spare else self._coming
        try:
            self._gate.enter(is_spare=is_spare)
        finally:
            coming[profile] -= 1
        try:
            return self._create(profile, is_spare=is_spare) if self._is_wanted(profile, is_spare) else None
        finally:
            self._gate.leave(is_spare=is_spare)

    def _is_wanted(self, profile: SandboxProfile, is_spare: bool) -> bool:
        if self._is_closed:
            return False
        if not is_spare:
            return self._waiting(profile) > self.creating[profile]
        is_short = self._spare(profile) + self.creating[profile] < self._targets.get(profile, 0)
        return is_short and self._ledger.fits(footprint_mb(profile))

    def _create(self, profile: SandboxProfile, *, is_spare: bool) -> Slot:
        memory_mb = footprint_mb(profile)
        if not is_spare:
            self._ledger.make_room(memory_mb)
        self.creating[profile] += 1
        self._ledger.take(memory_mb)
        try:
            sandbox = self._factory.create(profile)
        except BaseException:
            self._ledger.give(memory_mb)
            raise
        finally:
            self.creating[profile] -= 1
        return Slot(sandbox=sandbox, memory_mb=memory_mb, state=SandboxState.STEM)

    def _offer(self, profile: SandboxProfile, stem: Slot) -> None:
        if self._is_closed:
            self._end(stem, EndReason.SHUTDOWN)
            return
        for ticket in self._tickets:
            if ticket.profile == profile:
                self._serve(ticket, stem)
                return
        if self._spare(profile) < self._targets.get(profile, 0):
            self.stems.append(stem)
            self._on_spare(stem)
        else:
            self._end(stem, EndReason.SURPLUS)

    def _failed(self, profile: SandboxProfile, is_spare: bool, error: Exception) -> None:
        """An attempt that waits learns of it, in the order in which they came; a spare one is tried again later."""
        ticket = next((t for t in self._tickets if t.profile == profile), None)
        if not is_spare and ticket is not None:
            ticket.error = error
            self._serve(ticket, None)
            return
        if isinstance(error, BananasError):
            events.SPARE_FAILED(pool=profile.pool, error=error)
        else:
            events.SPARE_DEFECT(error, pool=profile.pool)
        if is_spare:
            self._on_failure(profile)

    def _serve(self, ticket: _Ticket, got: Slot | Seat | None) -> None:
        self._tickets.remove(ticket)
        ticket.got = got
        ticket.is_served.set()

    def _drop(self, stem: Slot, why: EndReason) -> None:
        self.stems.remove(stem)
        self._end(stem, why)
