"""A synchronous call: enqueue with one attempt, wait for its end, say it in HTTP. Called by ``routes/functions.py``,
``routes/raw.py`` and ``routes/aws.py``, which say the end of a job in their own words (``Telling``).

Whoever waits has a deadline, and whatever ends the wait early (deadline, client gone, gateway stopping, no runner) also
cancels the job: nobody is left to take its result. Not so with an ``Idempotency-Key``: its caller may come back, so the
job goes on, and who comes with the same key waits for the same job.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from bananas import events
from bananas.errors import BananasError, JobExpired, JobFinished, NoLiveRunner, RedisUnavailable, UnknownJob
from bananas.job import Enqueued, JobState, NewJob, Outcome, Reply
from bananas.queue import Queue
from bananas.registry import Registry
from bananas.settings import LIMITS
from gateway import auth, hangup, records
from gateway.answers import JSON, Answer
from gateway.live import LiveRunners, start_one
from gateway.problems import problem
from gateway.wait import Waiter, Waiters

#: Versions whose loading time is remembered; a version never changes.
_VERSIONS: Final = 1000
#: Most calls are over by then; only for those that are not, their client is watched.
_UNWATCHED_S: Final = 0.02
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


class Telling(Protocol):
    """How the end of a call is told."""

    def result(self, function: str, result: bytes, headers: dict[str, str]) -> Answer:
        """The answer of a call that went well; ``result`` is JSON text, ``headers`` belong into the answer."""
        ...

    def failure(self, function: str, job_id: str, attempt: records.AttemptReport, headers: dict[str, str]) -> Answer:
        """The answer of a call whose only attempt failed."""
        ...


class Problems:
    """The result as it is, and failures as problems."""

    def result(self, function: str, result: bytes, headers: dict[str, str]) -> Answer:  # noqa: ARG002
        """JSON."""
        return Answer(result, 200, headers.items(), JSON)

    def failure(self, function: str, job_id: str, attempt: records.AttemptReport, headers: dict[str, str]) -> Answer:
        """The handler's own error is passed on as it is."""
        told = records.describe_error(bytes(attempt.error))
        outcome = Outcome(attempt.outcome)
        code = _CODES.get(outcome, "sandbox-died")
        error: msgspec.Raw | None = attempt.error if told else None
        return problem(
            code,
            told or f"{function!r} ended with {outcome}",
            headers=headers,
            job=job_id,
            outcome=outcome,
            error=error,
        )


PROBLEMS: Final = Problems()


class Invoker:
    """Makes synchronous calls; one for each gateway process."""

    def __init__(self, queue: Queue, registry: Registry, waiters: Waiters, live: LiveRunners) -> None:
        self._queue = queue
        self._registry = registry
        self._waiters = waiters
        self._live = live
        self._init_ms: dict[tuple[str, str], int] = {}

    def call(
        self,
        function: str,
        payload: bytes,
        environ: dict[str, Any],
        key: str | None = None,
        *,
        traceparent: str | None = None,
        telling: Telling = PROBLEMS,
    ) -> Answer:
        """Run it once and answer; ``environ`` is the request's, for noticing that its client hangs up.

        ``key``: the call's ``Idempotency-Key``. Raises UnknownFunction, QueueFull, RateLimited, NoLiveRunner,
        RedisUnavailable, or Unavailable when the gateway stops.
        """
        job = NewJob(
            function,
            payload,
            max_retries=0,
            expires_after_ms=LIMITS.sync_queue_s * 1000,
            unique_key=key,
            traceparent=traceparent,
            is_sync=True,
            reply_to=self._waiters.reply_list,
        )
        job = auth.metered(job)
        if key is not None and not self._queue.is_taken(function, key):
            # Before it is queued: the key would go on standing for a call that could not be.
            self._check_served(function, self._registry.current(function).spec.pool, fresh=True)
        with self._waiters.expect(job.id) as waiter:
            queued = waiter.submit(job)
            try:
                if queued.duplicate:
                    reply = self._join(function, queued, environ, key)
                else:
                    if not waiter.is_over:
                        self._check_served(function, queued.pool)
                    reply = self._reply(function, queued, waiter, environ, key)
            except hangup.ClientGone:
                self._cancel(queued.id, key)
                return Answer(b"", _CLIENT_CLOSED)
            except BananasError as e:
                self._cancel(queued.id, key)
                e.details["job"] = queued.id
                raise
        answer = (
            self._too_slow(function, queued, key) if reply is None else self._answer(function, queued, reply, telling)
        )
        if queued.duplicate:
            answer.headers.append(("Bananas-Duplicate", "true"))
        return answer

    def _join(self, function: str, queued: Enqueued, environ: dict[str, Any], key: str | None) -> Reply | None:
        """Wait for an earlier call with the same key instead of for one's own job, which is not there."""
        with self._waiters.expect(queued.id) as waiter:
            waiter.ask()
            return self._reply(function, queued, waiter, environ, key)

    def _reply(
        self, function: str, queued: Enqueued, waiter: Waiter, environ: dict[str, Any], key: str | None
    ) -> Reply | None:
        """The end of the job; None when all the time for it is over. Raises ClientGone."""
        budget_s = 0 if waiter.is_over else self._budget_s(function, queued)
        reply = waiter.wait(_UNWATCHED_S)
        if reply is None:
            with hangup.watched(environ, waiter.abandon):
                reply = waiter.wait(budget_s)
        return self._overdue(waiter, key) if reply is None else reply

    def _check_served(self, function: str, pool: str, *, fresh: bool = False) -> None:
        if not self._live.serve(pool, fresh=fresh):
            raise NoLiveRunner(
                f"no live runner serves pool {pool!r} of function {function!r}; {start_one(pool)}, "
                "or look at GET /runners",
                pool=pool,
            )

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

    def _cancel(self, job_id: str, key: str | None) -> None:
        """Nobody waits for it any more, unless somebody comes back with the key."""
        if key is not None:
            return
        try:
            self._queue.cancel(job_id)
        except (JobFinished, UnknownJob, JobExpired):
            return
        except RedisUnavailable as e:
            events.CALL_NOT_CANCELLED(job=job_id, error=e)

    def _overdue(self, waiter: Waiter, key: str | None) -> Reply | None:
        """The deadline is over: cancel the job, unless it ended at this very moment or its caller may come back."""
        if key is not None:
            return None
        try:
            self._queue.cancel(waiter.job_id)
        except JobFinished:
            waiter.ask()
            return waiter.wait(0)
        return None

    def _too_slow(self, function: str, queued: Enqueued, key: str | None) -> Answer:
        """Our own deadline struck. What the job went through so far says why."""
        record = self._queue.show(queued.id)
        last = records.report(record.history[-1]) if record.history else None
        why = records.describe_error(record.error)
        detail = f"{function!r} did not answer in time"
        if record.token == 0:
            detail += f": {self._no_turn(queued.pool)}"
        elif why:
            detail += f"; its last attempt ended with {why}"
        if key is not None:
            detail += "; it goes on, and a call with the same key waits for it"
        outcome = last.outcome if last else None
        return problem("timeout", detail, headers={"Bananas-Job-Id": queued.id}, job=queued.id, outcome=outcome)

    def _no_turn(self, pool: str, within: str = "") -> str:
        """Why a call did not begin; with what keeps every runner of the pool from it, if anything does."""
        found = self._live.obstacle(pool)
        return f"no sandbox of pool {pool!r} became free{within}" + (f"; {found[1]}" if found else "")

    def _answer(self, function: str, queued: Enqueued, reply: Reply, telling: Telling) -> Answer:
        headers = {"Bananas-Job-Id": reply.id}
        attempt = records.report(reply.attempt)
        if timing := records.server_timing(attempt or _NO_TIMING):
            headers["Server-Timing"] = timing
        if reply.state is JobState.COMPLETED:
            # A large result is not pushed through the reply list; its record has it.
            result = self._queue.show(reply.id).result if reply.result is None else reply.result
            return telling.result(function, result or b"null", headers)
        if reply.state is JobState.CANCELLED:
            detail = f"job {reply.id} of {function!r} was cancelled by somebody else"
            return problem("job-cancelled", detail, headers=headers, job=reply.id, outcome=Outcome.CANCELLED)
        if attempt is None:
            waited = self._no_turn(queued.pool, f" within {LIMITS.sync_queue_s} s")
            return problem("timeout", waited, headers=headers, job=reply.id, outcome=Outcome.EXPIRED)
        return telling.failure(function, reply.id, attempt, headers)
