"""Operations and answers of the real queue as the plain values that the model speaks."""

from __future__ import annotations

from typing import Any

from bananas import errors
from bananas.job import Attempt, Claim, DeadReason, Decision, Enqueued, NewJob, Outcome, Settlement
from bananas.queue import Queue
from tests.property.model import End
from tests.property.model_ops import New

#: A lease, and the unit of all delays: far longer than a program takes.
HOUR_MS = 3_600_000


def new_job(new: New) -> NewJob:
    return NewJob(
        *(new.fn, new.payload, new.id, new.pool, new.prio, new.timeout_ms, new.max_retries, new.delay_ms),
        run_at_ms=new.run_at_ms,
        expires_after_ms=new.expires_ms,
        reply_to=new.reply_to,
        unique_key=new.unique_key or None,
        callback_url=new.callback or None,
        is_sync=new.is_sync,
    )


def created(queue: Queue, job: NewJob) -> Any:
    try:
        return shown(queue.enqueue(job))
    except errors.BananasError as e:
        return shown(e)


_REFUSALS = {
    errors.UnknownFunction: "unknown_function",
    errors.UnknownPool: "unknown_pool",
    errors.QueueFull: "full",
    errors.RateLimited: "limited",
    errors.UnknownJob: "missing",
    errors.JobNotDead: "not_dead",
    errors.VersionGone: "version_gone",
}


def shown(answer: Enqueued | errors.BananasError) -> Any:
    if isinstance(answer, errors.BananasError):
        return (_REFUSALS[type(answer)],)
    return "ok", answer.id, answer.version, answer.state.value, answer.pool, answer.timeout_ms, answer.duplicate


def public(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """The API knows no parked jobs."""
    return tuple("pending" if part == "parked" else part for part in answer)


def state_or_refusal(answer: Any) -> str:
    return _REFUSALS[type(answer)] if isinstance(answer, errors.BananasError) else answer.value


def waited(queue: Queue, job_id: str, reply_to: str) -> tuple[Any, ...]:
    try:
        reply = queue.wait(job_id, reply_to)
    except (errors.UnknownJob, errors.JobExpired):
        return ("gone",)
    if reply is None:
        return ("waiting",)
    token = None if reply.attempt == b"null" else int(reply.attempt.split(b",")[0].removeprefix(b'{"token":'))
    return "over", reply.state.value, token, reply.result


def cancelled(queue: Queue, job_id: str) -> str:
    try:
        queue.cancel(job_id)
    except (errors.UnknownJob, errors.JobExpired):
        return "gone"
    except errors.JobFinished:
        return "over"
    return "cancelled"


def repairs(queue: Queue) -> dict[str, int]:
    """What a whole round of the janitor puts right."""
    found: dict[str, int] = {}
    cursor = 0
    while True:
        audit = queue.audit(cursor)
        found |= audit.repaired
        cursor = audit.cursor
        if cursor == 0:
            return found


def told(c: Claim) -> tuple[Any, ...]:
    settings = (c.payload, c.timeout_ms, c.failures, c.starts, c.retries.max)
    return c.id, c.token, c.function, c.version, c.pool, c.priority, *settings


def settlement(c: Claim, how: tuple[Any, Outcome, str], hours: int, is_big: bool) -> Settlement:
    action, outcome, reason = how
    error = None if outcome is Outcome.OK else {"type": "E", "message": "m"}
    start = None if outcome is Outcome.HELD_UP else "warm"
    attempt = Attempt(c.token, outcome, "r1", 0, start, timings={"run_ms": 3.0}, error=error)
    result = (b'"much too big"' if is_big else b"1") if outcome is Outcome.OK else b""
    decision = Decision(action, hours * HOUR_MS if action == "retry" else 0, DeadReason(reason) if reason else None)
    return Settlement(c, attempt, decision, result, b"log" if is_big else b"")


def end_of(s: Settlement) -> End:
    d = s.decision
    reason = str(d.reason or "")
    return End(s.claim.id, s.claim.token, d.action, s.attempt.outcome.value, d.delay_ms, reason, s.result, s.logs)
