"""Concurrent clients that write down what they asked and heard: ``Recorder`` in one process, ``record`` in several.

Each history uses an empty queue of at most five jobs, so that the search of ``tests.chaos.linear`` stays short.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from random import Random
from typing import Any

from bananas import errors, keys
from bananas.job import Action, Attempt, Claim, DeadReason, Decision, NewJob, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from tests.chaos.linear import Call

PROCESSES = 3
THREADS = 2
STEPS = 7
JOBS = 4
#: A lease that stands for the rest of the history, and one that is over at once.
LONG_MS = 3_600_000
OVER_MS = 0
_WAIT_S = 60.0


class Recorder:
    """One client: random calls, each with the moments of question and answer."""

    def __init__(self, url: str, rng: Random) -> None:
        self._connections = Connections(url)
        self._queue = Queue(self._connections)
        self._rng = rng
        self._claims: list[Claim] = []
        self.calls: list[Call] = []

    def reset(self, rng: Random) -> None:
        """A new history begins."""
        self._rng, self._claims, self.calls = rng, [], []

    def step(self) -> None:
        """One random call."""
        ops = ("enqueue", "claim", "claim", "settle", "settle", "settle", "extend", "cancel", "reap", "promote")
        match self._rng.choice(ops):
            case "enqueue":
                self._enqueue(self._job())
            case "claim":
                self._claim()
            case "settle" | "extend" if not self._claims:
                self._claim()
            case "settle":
                self._settle(self._rng.choice(self._claims))
            case "extend":
                self._extend(self._rng.choice(self._claims))
            case "cancel":
                self._cancel(self._job())
            case "reap":
                self._call("reap", (), self._queue.reap)
            case "promote":
                self._call("promote", (), lambda: self._queue.promote()[0])

    def _job(self) -> str:
        return f"job{self._rng.randrange(JOBS)}"

    def _call(self, op: str, args: tuple[Any, ...], ask: Callable[[], Any]) -> Any:
        asked_ns = time.monotonic_ns()
        try:
            answer = ask()
        except errors.RedisUnavailable:
            self.calls.append(Call(op, args, None, asked_ns))
            return None
        self.calls.append(Call(op, args, answer, asked_ns, time.monotonic_ns()))
        return answer

    def _enqueue(self, job_id: str) -> None:
        self._call("enqueue", (job_id,), lambda: bool(self._queue.enqueue(NewJob("hello", b"1", id=job_id))))

    def _claim(self) -> None:
        count, is_due = self._rng.randint(1, 2), self._rng.random() < 0.4
        claims: list[Claim] = []

        def ask() -> tuple[tuple[str, int], ...]:
            lease_ms = OVER_MS if is_due else LONG_MS
            claims.extend(self._queue.step("client", lease_ms, [], [("default", count)]).claims)
            return tuple((claim.id, claim.token) for claim in claims)

        self._call("claim", (count, is_due), ask)
        self._claims += claims

    def _settle(self, claim: Claim) -> None:
        actions: tuple[Action, ...] = ("complete", "complete", "back", "retry", "dead")
        action: Action = self._rng.choice(actions)
        outcome = {"complete": Outcome.OK, "back": Outcome.HANDED_BACK}.get(action, Outcome.ERROR)
        decision = Decision(action, reason=DeadReason.RETRIES_EXHAUSTED if action == "dead" else None)
        report = Settlement(claim, Attempt(claim.token, outcome, "client", 0), decision, b"1")
        args = (claim.id, claim.token, action)
        self._call("settle", args, lambda: self._queue.step("client", LONG_MS, [report], []).settled[0])

    def _extend(self, claim: Claim) -> None:
        is_due = self._rng.random() < 0.3
        lease_ms = OVER_MS if is_due else LONG_MS
        args = (claim.id, claim.token, is_due)
        self._call("extend", args, lambda: self._queue.extend("client", lease_ms, [(claim.id, claim.token)])[0])

    def _cancel(self, job_id: str) -> None:
        def ask() -> str:
            try:
                self._queue.cancel(job_id)
            except errors.JobFinished:
                return "over"
            except (errors.UnknownJob, errors.JobExpired):
                return "missing"
            return "cancelled"

        self._call("cancel", (job_id,), ask)


def _process(url: str, seed: int, number: int, rounds: int, barrier: Barrier, results: Any) -> None:
    recorders = [Recorder(url, Random(0)) for _ in range(THREADS)]
    for turn in range(rounds):
        barrier.wait(_WAIT_S)  # the queue is empty
        for i, recorder in enumerate(recorders):
            recorder.reset(Random(f"{seed} {turn} {number} {i}"))
        threads = [threading.Thread(target=lambda r=r: [r.step() for _ in range(STEPS)]) for r in recorders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_WAIT_S)
        results.put((turn, [call for recorder in recorders for call in recorder.calls]))
        barrier.wait(_WAIT_S)  # nobody asks any more


def record(url: str, connections: Connections, seed: int, rounds: int) -> list[list[Call]]:
    """``rounds`` histories of ``PROCESSES * THREADS`` clients of the server at ``url``; its function is ``hello``."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES + 1), context.Queue()
    processes = [
        context.Process(target=_process, args=(url, seed, i, rounds, barrier, results)) for i in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    try:
        histories = [_round(connections, barrier, results) for _ in range(rounds)]
    finally:
        for process in processes:
            process.join(_WAIT_S)
            assert process.exitcode == 0, f"a client ended with {process.exitcode}"
    return histories


def _round(connections: Connections, barrier: Barrier, results: Any) -> list[Call]:
    client = connections.commands
    for name in ("job:*", "lane:*", "stride:*", "bell:*", "running:*", "busy:*", "inbox:*"):
        if found := client.keys(keys.PREFIX + name):
            client.delete(*found)
    client.delete(keys.SCHEDULE, keys.LEASES, keys.DEAD, keys.CALLS, keys.DONE)
    barrier.wait(_WAIT_S)
    barrier.wait(_WAIT_S)
    return [call for _ in range(PROCESSES) for call in results.get(timeout=_WAIT_S)[1]]
