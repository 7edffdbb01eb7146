"""Concurrent histories of the real queue can be put in order; the checker that says so refuses those that cannot."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise

import pytest

from bananas.registry import Registry
from bananas.spec import Bundles, Deployment, FunctionSpec
from tests.chaos import history, plan
from tests.chaos.linear import Call, is_linearizable

LEAST_CLAIMS_PER_HISTORY = 2


def calls(*steps: tuple[str, tuple[object, ...], object]) -> list[Call]:
    """One after the other."""
    return [Call(op, args, answer, i * 10, i * 10 + 5) for i, (op, args, answer) in enumerate(steps)]


ENQUEUED = ("enqueue", ("a",), True)
CLAIMED = ("claim", (1, False), (("a", 1),))
LOST = ("claim", (1, True), (("a", 1),))
DONE = ("settle", ("a", 1, "complete"), True)

GOOD = {
    "a job's straight line": [ENQUEUED, CLAIMED, DONE, ("cancel", ("a",), "over")],
    "a claim of nothing": [("claim", (2, False), ()), ENQUEUED, CLAIMED],
    "the stale report is refused": [
        *(ENQUEUED, LOST, ("reap", (), (1, 0)), ("claim", (1, False), (("a", 2),))),
        *(("settle", ("a", 1, "complete"), False), ("settle", ("a", 2, "complete"), True)),
    ],
    "a retry waits for its promotion": [
        *(ENQUEUED, CLAIMED, ("settle", ("a", 1, "retry"), True), ("claim", (1, False), ())),
        *(("promote", (), 1), ("claim", (1, False), (("a", 2),))),
    ],
}
BROKEN = {
    "two reports of one token are taken": [ENQUEUED, CLAIMED, DONE, DONE],
    "a report is taken after a later claim": [
        *(ENQUEUED, LOST, ("reap", (), (1, 0)), ("claim", (1, False), (("a", 2),))),
        ("settle", ("a", 1, "complete"), True),
    ],
    "two claims get the same job": [ENQUEUED, CLAIMED, CLAIMED],
    "a token is not the next one": [ENQUEUED, ("claim", (1, False), (("a", 2),))],
    "a claim sees nothing although a job waits": [ENQUEUED, ("claim", (1, False), ())],
    "a lane is not first in, first out": [ENQUEUED, ("enqueue", ("b",), True), ("claim", (1, False), (("b", 1),))],
    "a standing lease is reaped": [ENQUEUED, CLAIMED, ("reap", (), (1, 0))],
    "a lease that is over is extended after the reaper": [
        *(ENQUEUED, LOST, ("reap", (), (1, 0)), ("extend", ("a", 1, False), True)),
    ],
    "a cancelled job is claimed": [ENQUEUED, ("cancel", ("a",), "cancelled"), CLAIMED],
    "a job that was handed back is not first": [
        *(ENQUEUED, ("enqueue", ("b",), True), CLAIMED, ("settle", ("a", 1, "back"), True)),
        ("claim", (1, False), (("b", 1),)),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_histories_that_can_be_put_in_order_are_accepted(name):
    """The checker knows what the queue promises."""
    assert is_linearizable(calls(*GOOD[name]))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_histories_are_refused(name):
    """The checker finds each kind of broken promise."""
    assert not is_linearizable(calls(*BROKEN[name]))


def test_only_calls_that_overlap_may_change_places():
    """What was answered before another was asked comes first; of two that overlap either may."""
    early, late = Call("claim", (1, False), (), 0, 10), Call("enqueue", ("a",), True, 5, 15)
    assert is_linearizable([early, late])
    assert not is_linearizable([Call("enqueue", ("a",), True, 0, 4), Call("claim", (1, False), (), 5, 10)])
    either = [Call("claim", (1, False), (("a", 1),), 0, 30), Call("enqueue", ("a",), True, 10, 20)]
    assert is_linearizable(either)


def test_a_call_without_an_answer_happened_once_or_never():
    """A client that heard nothing constrains nobody, but its call does not happen twice."""
    unheard = Call("claim", (1, False), None, 6)
    enqueue, empty = Call("enqueue", ("a",), True, 0, 5), Call("claim", (1, False), (), 20, 25)
    claim = Call("claim", (1, False), (("a", 1),), 20, 25)
    assert is_linearizable([enqueue, unheard, empty])
    assert is_linearizable([enqueue, unheard, claim])
    assert not is_linearizable([enqueue, unheard, Call("enqueue", ("b",), True, 7, 9), empty])


@pytest.mark.usefixtures("untraced")
@pytest.mark.timeout(900)
def test_concurrent_histories_of_the_queue_are_linearizable(redis_url, connections):
    """Six clients in three processes claim, settle, extend, cancel, reap and promote the same few jobs at once."""
    registry = Registry(connections)
    sha = hashlib.sha256(b"x").hexdigest()
    registry.put_bundle(sha, b"x")
    registry.deploy("hello", Deployment(spec=FunctionSpec(), bundles=Bundles(code=sha), abi="any"))
    histories = history.record(redis_url, connections, plan.seed(), round(plan.number("HISTORIES")))
    claimed = sum(len(call.answer) for found in histories for call in found if call.op == "claim")
    overlapping = sum(_overlaps(found) for found in histories)
    assert claimed >= LEAST_CLAIMS_PER_HISTORY * len(histories)
    assert overlapping >= len(histories), "the clients did not get in each other's way"
    for number, found in enumerate(histories):
        assert is_linearizable(found), f"history {number} of seed {plan.seed()}:\n" + "\n".join(
            f"{c.asked_ns - found[0].asked_ns:>12} {c.heard_ns - found[0].asked_ns:>12} {c.op}{c.args} -> {c.answer}"
            for c in sorted(found, key=lambda c: c.asked_ns)
        )
        if settled := [call for call in found if call.op == "settle" and call.answer]:
            end_ns = max(call.heard_ns for call in found)
            again = replace(settled[0], asked_ns=round(end_ns) + 1, heard_ns=end_ns + 2)
            assert not is_linearizable([*found, again]), f"history {number}: a report that is taken twice is accepted"


def _overlaps(found: list[Call]) -> int:
    ordered = sorted(found, key=lambda call: call.asked_ns)
    return sum(later.asked_ns < earlier.heard_ns for earlier, later in pairwise(ordered))
