"""Is a history of concurrent calls what some order of single steps could have answered? A search in the style of Wing
and Gong (1993), with the memory of states already tried that Lowe (2017) added.

The steps are those of ``Model``: one lane and a few jobs, written from docs/states.md and not from the scripts. Leases
are either over at once or stand for ever, so that time plays no part. Where the product orders by time (what comes
back out of a reap or a promotion), every order is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

MAX_LOSSES = 3


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one client: what it asked, what it heard, when (monotonic ns)."""

    op: str
    args: tuple[Any, ...]
    #: None: it never heard an answer, so the call may have done its work once, or not at all.
    answer: Any
    asked_ns: int
    heard_ns: float = math.inf


@dataclass(frozen=True, slots=True)
class Job:
    """One job in the model."""

    #: pending, scheduled, leased, over.
    state: str = "pending"
    token: int = 0
    losses: int = 0
    #: True while its lease is over already.
    is_due: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """The whole queue; hashable."""

    jobs: tuple[tuple[str, Job], ...] = ()
    lane: tuple[str, ...] = ()

    def get(self, job_id: str) -> Job | None:
        """The job, if there is one."""
        return dict(self.jobs).get(job_id)

    def put(self, job_id: str, job: Job, lane: tuple[str, ...] | None = None) -> State:
        """The state with one job changed, and maybe the lane."""
        jobs = {**dict(self.jobs), job_id: job}
        return State(tuple(sorted(jobs.items())), self.lane if lane is None else lane)


Outcome = tuple[Any, State]


def apply(state: State, op: str, args: tuple[Any, ...]) -> Iterator[Outcome]:
    """Every (answer, next state) that the step may lead to."""
    match op, args:
        case "enqueue", (job_id,):
            new = state if state.get(job_id) else state.put(job_id, Job(), (*state.lane, job_id))
            yield True, new
        case "claim", (count, is_due):
            yield _claim(state, count, is_due)
        case "settle", (job_id, token, action):
            yield from _settle(state, job_id, token, action)
        case "extend", (job_id, token, is_due):
            job = state.get(job_id)
            if job is None or job.state != "leased" or job.token != token:
                yield False, state
            else:
                yield True, state.put(job_id, replace(job, is_due=is_due))
        case "cancel", (job_id,):
            job = state.get(job_id)
            if job is None or job.state == "over":
                yield ("missing" if job is None else "over"), state
            else:
                lane = tuple(other for other in state.lane if other != job_id)
                yield "cancelled", state.put(job_id, replace(job, state="over"), lane)
        case "reap", ():
            yield from _reap(state)
        case "promote", ():
            due = [job_id for job_id, job in state.jobs if job.state == "scheduled"]
            for order in permutations(due):
                new = state
                for job_id in order:
                    new = new.put(job_id, replace(dict(new.jobs)[job_id], state="pending"), (*new.lane, job_id))
                yield len(due), new
        case _:
            raise AssertionError(f"the model knows no {op}{args}")


def _claim(state: State, count: int, is_due: bool) -> Outcome:
    claims = []
    for job_id in state.lane[:count]:
        job = dict(state.jobs)[job_id]
        claims.append((job_id, job.token + 1))
        state = state.put(job_id, replace(job, state="leased", token=job.token + 1, is_due=is_due), state.lane[1:])
    return tuple(claims), state


def _settle(state: State, job_id: str, token: int, action: str) -> Iterator[Outcome]:
    job = state.get(job_id)
    if job is None or job.state != "leased" or job.token != token:
        yield False, state
    elif action == "back":
        yield True, state.put(job_id, replace(job, state="pending"), (job_id, *state.lane))
    else:
        yield True, state.put(job_id, replace(job, state="scheduled" if action == "retry" else "over"))


def _reap(state: State) -> Iterator[Outcome]:
    back, poisoned = [], 0
    for job_id, job in state.jobs:
        if job.state == "leased" and job.is_due:
            is_last = job.losses + 1 >= MAX_LOSSES
            state = state.put(job_id, replace(job, state="over" if is_last else "pending", losses=job.losses + 1))
            poisoned += is_last
            back += [] if is_last else [job_id]
    for order in permutations(back):
        yield (len(back), poisoned), replace(state, lane=(*order, *state.lane))


def is_linearizable(history: Iterable[Call]) -> bool:
    """True when some order of the calls, each at a moment between question and answer, gives all the answers."""
    calls = sorted(history, key=lambda call: call.asked_ns)
    answered = sum(1 << i for i, call in enumerate(calls) if call.answer is not None)
    seen: set[tuple[int, State]] = set()
    todo: list[tuple[int, State]] = [(0, State())]
    while todo:
        done, state = todo.pop()
        if done & answered == answered:
            return True
        for i in _next(calls, done):
            for answer, following in apply(state, calls[i].op, calls[i].args):
                found = (done | 1 << i, following)
                if (calls[i].answer is None or answer == calls[i].answer) and found not in seen:
                    seen.add(found)
                    todo.append(found)
    return False


def _next(calls: Sequence[Call], done: int) -> list[int]:
    """The calls that may come next: none that is left was answered before they were asked."""
    left = [i for i in range(len(calls)) if not done >> i & 1]
    horizon = min((calls[i].heard_ns for i in left), default=math.inf)
    return [i for i in left if calls[i].asked_ns <= horizon]
