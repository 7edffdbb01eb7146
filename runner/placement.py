"""Decide which sandbox takes the next attempt. Pure functions: no clock, no engine, no locks; ``pool.py`` applies them.

Reuse is last in, first out: the hottest sandbox works, the others stay idle long enough to be evicted (after
OpenWhisk's ContainerPool.schedule and Fn's slot queue).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar


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


S = TypeVar("S", bound=IdleSandbox)


@dataclass(frozen=True, slots=True)
class Placement:
    """How an attempt gets its sandbox."""

    kind: Literal["warm", "create"]
    #: Position in the idle list: the one to reuse, or the one to evict first; None: nothing to evict.
    index: int | None
    #: Why not warm; empty when warm.
    reason: str


def place(idle: Sequence[IdleSandbox], total: int, capacity: int, key: object) -> Placement:
    """The placement for an attempt with ``key``.

    Args:
        idle: idle sandboxes in the order in which they became idle.
        total: all sandboxes of the pool, idle, busy and starting.
        capacity: the most sandboxes the pool may have.
    """
    for index in range(len(idle) - 1, -1, -1):
        if idle[index].key == key:
            return Placement("warm", index, "")
    if total < capacity:
        return Placement("create", None, "none_idle")
    victim = min(range(len(idle)), key=lambda i: idle[i].idle_since_s, default=None)
    return Placement("create", victim, "none_idle_evicted_other" if victim is not None else "none_idle")


def expired(idle: Sequence[S], now_s: float, idle_timeout_s: float) -> list[S]:
    """The idle sandboxes whose time is over."""
    return [sandbox for sandbox in idle if now_s - sandbox.idle_since_s >= idle_timeout_s]


def next_expiry_s(idle: Sequence[IdleSandbox], now_s: float, idle_timeout_s: float) -> float | None:
    """Seconds until the next one expires; None when nothing is idle."""
    if not idle:
        return None
    return max(0.0, min(s.idle_since_s for s in idle) + idle_timeout_s - now_s)
