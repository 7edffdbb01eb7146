"""Decide which sandbox takes an attempt, which ones go, and how many are missing. Pure functions: no clock, no engine.

A sandbox that may run several calls is filled before another one is used: that is what sharing is for, and the others
stay idle long enough to be evicted.

Reuse is last in, first out: the hottest sandbox works, the others stay idle long enough to be evicted (after
OpenWhisk's ContainerPool.schedule and Fn's slot queue). ``pool.py`` and ``ledger.py`` apply what is decided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

#: Lifetimes are shortened by up to this part at random, so that sandboxes which began together do not end together.
JITTER = 0.1


class IdleSandbox(Protocol):
    """What placement needs to know of an idle sandbox."""

    @property
    def key(self) -> object:
        """Whom it may serve: equal keys are interchangeable."""
        ...

    @property
    def idle_since_s(self) -> float:
        """Monotonic seconds."""
        ...

    @property
    def ends_at_s(self) -> float:
        """Monotonic seconds at which its lifetime is over; infinite when it has none."""
        ...


class Evictable(Protocol):
    """What the choice of a victim depends on."""

    @property
    def rank(self) -> int:
        """Lower ones go first."""
        ...

    @property
    def idle_since_s(self) -> float:
        """Monotonic seconds."""
        ...

    @property
    def memory_mb(self) -> int:
        """What its end frees."""
        ...


class Shared(Protocol):
    """A sandbox that runs calls and has room for more."""

    @property
    def seats(self) -> Sequence[object]:
        """One for each call."""
        ...


S = TypeVar("S", bound=IdleSandbox)
E = TypeVar("E", bound=Evictable)
F = TypeVar("F", bound=Shared)


@dataclass(frozen=True, slots=True)
class Placement:
    """How an attempt gets its sandbox."""

    kind: Literal["warm", "fresh"]
    #: Position in the idle list: the one to reuse, or the one to evict first; None: nothing to evict.
    index: int | None


def place(
    idle: Sequence[S], total: int, capacity: int, key: object, kept: Callable[[], Collection[S]] = tuple
) -> Placement:
    """The placement for an attempt with ``key``.

    Args:
        idle: idle sandboxes in the order in which they became idle.
        total: the places that are taken: by each sandbox one, idle, busy or awaited, and by each further call in it.
        capacity: the most places the pool may have.
        kept: asked for the idle ones that go only if there is nothing else.
    """
    for index in range(len(idle) - 1, -1, -1):
        if idle[index].key == key:
            return Placement("warm", index)
    if total < capacity or not idle:
        return Placement("fresh", None)
    spared = {id(sandbox) for sandbox in kept()}
    return Placement("fresh", min(range(len(idle)), key=lambda i: (id(idle[i]) in spared, idle[i].idle_since_s)))


def fullest(open_ones: Sequence[F]) -> F | None:
    """Which of the sandboxes that have room gets the next call: the one with the most; of equals the newest."""
    return max(reversed(open_ones), key=lambda one: len(one.seats), default=None)


def victims(candidates: Sequence[E], need_mb: int) -> list[E]:
    """Whom to end so that ``need_mb`` come free: by rank, the longest unused first; all if that is too little."""
    chosen = []
    for candidate in sorted(candidates, key=lambda c: (c.rank, c.idle_since_s)):
        if need_mb <= 0:
            break
        chosen.append(candidate)
        need_mb -= candidate.memory_mb
    return chosen


def kept(idle: Sequence[S], busy: Counter[object], wanted: Mapping[object, int]) -> list[S]:
    """The idle ones that make up ``wanted`` of each key together with the busy ones: the latest used of them."""
    left = {key: number - busy[key] for key, number in wanted.items()}
    out = []
    for sandbox in reversed(idle):
        if left.get(sandbox.key, 0) > 0:
            left[sandbox.key] -= 1
            out.append(sandbox)
    return out


def missing(have: Counter[object], wanted: Mapping[object, int]) -> dict[object, int]:
    """How many of each key are too few; nothing of a key that has enough."""
    short = {key: number - have[key] for key, number in wanted.items()}
    return {key: number for key, number in short.items() if number > 0}


def expired(idle: Sequence[S], now_s: float, timeout_s: Callable[[S], float]) -> list[S]:
    """The idle sandboxes whose time is over; ``timeout_s`` says for how long each may be idle."""
    return [sandbox for sandbox in idle if _ends_s(sandbox, timeout_s) <= now_s]


def next_expiry_s(idle: Sequence[S], now_s: float, timeout_s: Callable[[S], float]) -> float | None:
    """Seconds until the next one expires; None when none will."""
    ends_s = min((_ends_s(sandbox, timeout_s) for sandbox in idle), default=float("inf"))
    return None if ends_s == float("inf") else max(0.0, ends_s - now_s)


def _ends_s(sandbox: S, timeout_s: Callable[[S], float]) -> float:
    return min(sandbox.ends_at_s, sandbox.idle_since_s + timeout_s(sandbox))


def lifetime_s(limit_s: float | None, random: float) -> float:
    """How long one sandbox may serve; ``random`` is 0 to 1."""
    return float("inf") if limit_s is None else limit_s * (1 - JITTER * random)
