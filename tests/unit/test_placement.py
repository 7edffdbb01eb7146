"""Where an attempt goes and who goes for it: the pure decisions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from bananas.errors import ProtocolError, SandboxDied
from bananas.testing import ManualClock
from runner import placement
from runner.alarm import Setbacks
from runner.reasons import EndReason, of_failure


@dataclass(frozen=True)
class Box:
    key: str
    idle_since_s: float = 0.0
    ends_at_s: float = math.inf
    rank: int = 0
    memory_mb: int = 100


boxes = st.lists(
    st.builds(
        Box, st.sampled_from("abc"), st.integers(0, 9), st.just(math.inf), st.integers(0, 2), st.integers(1, 500)
    ),
    max_size=8,
)


@given(boxes, st.integers(0, 4), st.integers(1, 8))
def test_a_warm_one_is_taken_whenever_there_is_one(idle, busy, capacity):
    """The latest of its key; an eviction only in a full pool, and never of more than one."""
    choice = placement.place(idle, len(idle) + busy, capacity, "a")
    positions = [i for i, box in enumerate(idle) if box.key == "a"]
    if positions:
        assert choice == placement.Placement("warm", positions[-1])
    elif len(idle) + busy < capacity or not idle:
        assert choice == placement.Placement("fresh", None)
    else:
        assert choice.kind == "fresh"
        assert idle[choice.index].idle_since_s == min(box.idle_since_s for box in idle)


def test_what_min_warm_keeps_goes_last():
    """Another function's work takes the place of one that nobody asked to keep, even if it is younger."""
    idle = [Box("kept", 1.0), Box("other", 2.0)]
    assert placement.place(idle, 2, 2, "new", lambda: [idle[0]]).index == 1
    assert placement.place(idle[:1], 1, 1, "new", lambda: [idle[0]]).index == 0


@given(boxes, st.integers(-100, 2000))
def test_victims_are_no_more_than_needed_and_in_order(candidates, need_mb):
    """Lower ranks first, then the longest unused; one less would have been too little."""
    chosen = placement.victims(candidates, need_mb)
    order = sorted(candidates, key=lambda box: (box.rank, box.idle_since_s))
    assert chosen == order[: len(chosen)]
    assert sum(box.memory_mb for box in chosen) >= min(need_mb, sum(box.memory_mb for box in candidates))
    assert not chosen or sum(box.memory_mb for box in chosen[:-1]) < need_mb


@given(
    boxes,
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)),
)
def test_kept_ones_make_up_what_is_wanted_together_with_the_busy(idle, busy, wanted):
    """Never more than that, and the latest used."""
    kept = placement.kept(idle, Counter(busy), wanted)
    for key in "abc":
        there = [box for box in idle if box.key == key]
        number = max(0, min(len(there), wanted.get(key, 0) - busy.get(key, 0)))
        assert [box for box in kept if box.key == key] == list(reversed(there))[:number]


def test_missing_counts_what_is_too_few():
    """Nothing is told of what has enough."""
    assert placement.missing(Counter(a=1, b=3), {"a": 3, "b": 2, "c": 1, "d": 0}) == {"a": 2, "c": 1}


def test_expiry_is_the_earlier_of_idle_timeout_and_lifetime():
    """And the next one is known, so that nobody has to look in between."""
    idle = [Box("a", 0.0, 5.0), Box("b", 2.0), Box("kept", 0.0)]
    timeouts = {"a": 10.0, "b": 10.0, "kept": math.inf}
    assert placement.expired(idle, 5.0, lambda box: timeouts[box.key]) == [idle[0]]
    assert placement.next_expiry_s(idle[1:], 5.0, lambda box: timeouts[box.key]) == 7.0
    assert placement.next_expiry_s(idle[2:], 5.0, lambda box: timeouts[box.key]) is None


@given(st.floats(0, 1), st.floats(1, 1e6))
def test_lifetimes_are_shortened_by_a_tenth_at_most(random, limit_s):
    """And never made longer."""
    assert limit_s * 0.899 <= placement.lifetime_s(limit_s, random) <= limit_s
    assert placement.lifetime_s(None, random) == math.inf


def test_failures_have_their_reasons():
    """What ended a call is what ended its sandbox."""
    assert of_failure(TimeoutError()) is EndReason.FAILED_TIMEOUT
    assert of_failure(ProtocolError("x")) is EndReason.FAILED_PROTOCOL
    assert of_failure(SandboxDied("x")) is EndReason.FAILED_CRASH


def test_setbacks_wait_longer_each_time_and_a_success_forgets_them():
    """One thing's trouble delays nothing else."""
    clock = ManualClock()
    setbacks = Setbacks(clock)
    waits = []
    for _ in range(6):
        waits.append(setbacks.failed("a") - clock.mono_s())
        assert not setbacks.may_try("a")
        assert setbacks.may_try("b")
        assert setbacks.next_s() == waits[-1]
        clock.advance(waits[-1])
        assert setbacks.may_try("a")
    assert waits == [1, 5, 30, 60, 60, 60]
    setbacks.succeeded("a")
    assert setbacks.failed("a") - clock.mono_s() == 1
