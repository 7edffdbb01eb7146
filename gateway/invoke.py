"""A synchronous call: enqueue with one attempt, wait for its end, say it in HTTP. Called by ``routes/functions.py``.

Whoever waits has a deadline, and whatever ends the wait early (deadline, client gone, gateway stopping, no runner) also
cancels the job: nobody is left to take its result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from flask import Response

from bananas.errors import BananasError, JobExpired, JobFinished, NoLiveRunner, RedisUnavailable, UnknownJob
from bananas.job import Enqueued, JobState, NewJob, Outcome, Reply
from bananas.queue import Queue
from bananas.registry import Registry, RunnerInfo
from bananas.settings import LIMITS
from gateway import hangup, records
from gateway.problems import problem
from gateway.wait import Waiter, Waiters

log = logging.getLogger(__name__)

#: How old the list of live runners may be when it says that a pool is served, and when it says that none does.
_LIVE_S: Final = 1.0
_DEAD_S: Final = 0.1
#: Versions whose loading time is remembered; a version never changes.
_VERSIONS: Final = 1000
#: nginx's status for a client that did not wait; nobody reads it.
_CLIENT_CLOSED: Final = 499

_NO_TIMING = records.AttemptReport(0, "", "")
#: How an attempt that did not end well is told.
_CODES: Final = {
    Outcome.ERROR: "handler-error",
    Outcome.PERMANENT: "handler-error",
    Outcome.TIMEOUT: "timeout",
    Outcome.OOM: "sandbox-died",
    Outcome.CRASHED: "sandbox-died",
    Outcome.LOST: "sandbox-died",
    Outcome.START: "sandbox-start",
}


class LiveRunners:
    """Which pools somebody serves, asked of Redis at most once in a second while all is well."""

    def __init__(self, registry: Registry, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._mono_s = mono_s
        self._runners: list[RunnerInfo] = []
        self._asked_s = float("-inf")

    def serve(self, pool: str) -> bool:
        """True when a live runner takes jobs of the pool."""
        age_s = self._mono_s() - self._asked_s
        if age_s < _LIVE_S and any(runner.serves(pool) for runner in self._runners):
            return True
        if age_s >= _DEAD_S:
            self._runners = self._registry.runners()
            self._asked_s = self._mono_s()
        return any(runner.serves(pool) for runner in self._runners)


class Invoker:
    """Makes synchronous calls; one for each gateway process."""

    def __init__(self, queue: Queue, registry: Registry, waiters: Waiters) -> None:
        self._queue = queue
        self._registry = registry
        self._waiters = waiters
        self._live = LiveRunners(registry)
        self._init_ms: dict[tuple[str, str], int] = {}

    def call(self, function: str, payload: bytes, environ: dict[str, Any]) -> Response:
        """Run it once and answer; ``environ`` is the request's, for noticing that its client hangs up.

        Raises UnknownFunction, QueueFull, NoLiveRunner, RedisUnavailable, or Unavailable when the gateway stops.
        """
        job = NewJob(function, payload, max_retries=0, expires_after_ms=LIMITS.sync_queue_s * 1000)
        with self._waiters.expect(job.id) as waiter, hangup.watched(environ, waiter.abandon):
            queued = waiter.submit(job)
            try:
                if not self._live.serve(queued.pool) and not waiter.is_over:
                    raise NoLiveRunner(
                        f"no live runner serves pool {queued.pool!r} of function {function!r}; start one with "
                        "`bananas runner`, or look at GET /runners",
                        pool=queued.pool,
                    )
                reply = waiter.wait(self._budget_s(function, queued)) or self._overdue(waiter)
            except hangup.ClientGone:
                self._cancel(job.id)
                return Response(status=_CLIENT_CLOSED)
            except BananasError as e:
                self._cancel(job.id)
                e.details["job"] = job.id
                raise
        if reply is None:
            return self._too_slow(function, queued)
        return self._answer(function, queued, reply)

    def _budget_s(self, function: str, queued: Enqueued) -> float:
        """Everything that may pass until the answer: its turn, loading the code, one run."""
        return LIMITS.sync_queue_s + (self._init_timeout_ms(function, queued.version) + queued.timeout_ms) / 1000

    def _init_timeout_ms(self, function: str, version: str) -> int:
        key = (function, version)
        if key not in self._init_ms:
            while len(self._init_ms) >= _VERSIONS:
                del self._init_ms[next(iter(self._init_ms))]
            self._init_ms[key] = self._registry.version(function, version).spec.init_timeout_ms
        return self._init_ms[key]

    def _cancel(self, job_id: str) -> None:
        """Nobody waits for it any more."""
        try:
            self._queue.cancel(job_id)
        except (JobFinished, UnknownJob, JobExpired):
            return
        except RedisUnavailable as e:
            log.warning("job=%s was given up by its caller but could not be cancelled: %s", job_id, e)

    def _overdue(self, waiter: Waiter) -> Reply | None:
        """The deadline is over: cancel the job, unless it ended at this very moment."""
        try:
            self._queue.cancel(waiter.job_id)
        except JobFinished:
            waiter.ask()
            return waiter.wait(0)
        return None

    def _too_slow(self, function: str, queued: Enqueued) -> Response:
        """Our own deadline struck. What the job went through so far says why."""
        record = self._queue.show(queued.id)
        last = records.report(record.history[-1]) if record.history else None
        why = records.describe_error(record.error)
        detail = f"{function!r} did not answer in time"
        if record.token == 0:
            detail += f": no sandbox of pool {queued.pool!r} became free"
        elif why:
            detail += f"; its last attempt ended with {why}"
        outcome = last.outcome if last else None
        return problem("timeout", detail, headers={"Bananas-Job-Id": queued.id}, job=queued.id, outcome=outcome)

    def _answer(self, function: str, queued: Enqueued, reply: Reply) -> Response:
        headers = {"Bananas-Job-Id": reply.id}
        attempt = records.report(reply.attempt)
        if timing := records.server_timing(attempt or _NO_TIMING):
            headers["Server-Timing"] = timing
        if reply.state is JobState.COMPLETED:
            # A large result is not pushed through the reply list; its record has it.
            result = self._queue.show(reply.id).result if reply.result is None else reply.result
            return Response(result or b"null", 200, headers, mimetype="application/json")
        if reply.state is JobState.CANCELLED:
            detail = f"job {reply.id} of {function!r} was cancelled by somebody else"
            return problem("job-cancelled", detail, headers=headers, job=reply.id, outcome=Outcome.CANCELLED)
        if attempt is None:
            waited = f"no sandbox of pool {queued.pool!r} became free within {LIMITS.sync_queue_s} s"
            return problem("timeout", waited, headers=headers, job=reply.id, outcome=Outcome.EXPIRED)
        return _failure(function, reply.id, attempt, headers)


def _failure(function: str, job_id: str, attempt: records.AttemptReport, headers: dict[str, str]) -> Response:
    """The problem of a call whose only attempt failed; the handler's own error is passed on as it is."""
    told = records.describe_error(bytes(attempt.error))
    outcome = Outcome(attempt.outcome)
    code = _CODES.get(outcome, "sandbox-died")
    error: msgspec.Raw | None = attempt.error if told else None
    return problem(
        code, told or f"{function!r} ended with {outcome}", headers=headers, job=job_id, outcome=outcome, error=error
    )
