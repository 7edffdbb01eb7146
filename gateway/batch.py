"""Many jobs in one request: each is taken or refused by itself, and the answers keep their order.

Called by ``routes/jobs.py``. Decides the status of the whole; what a single job may say is up to ``gateway.bodies``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from bananas.errors import BananasError, InvalidRequest, RedisUnavailable, UnknownFunction
from bananas.job import Enqueued, NewJob
from bananas.queue import Queue
from bananas.settings import LIMITS
from gateway import bodies, hints, problems
from gateway.forms import Form
from gateway.guard import too_large

Jobs = list[msgspec.Raw]
Accept = Callable[[NewJob], NewJob]
#: Only shown; the rest of an item's problem says what is wrong with it.
_EXAMPLE: Final = '{"jobs": [{"name": "hello", "payload": {}}]}'


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /jobs/batch``."""

    jobs: Jobs


_FORM: Final = Form(BatchBody, {"jobs": "a list of bodies of POST /jobs"}, _EXAMPLE)


def items(raw: bytes, accept: Accept, traceparent: str | None = None) -> list[NewJob | BananasError]:
    """The jobs of a body in order, or why one is none; raises InvalidRequest for what is no batch at all.

    Args:
        accept: gets each job and raises when the request may not submit it; answers the job to submit.
        traceparent: the request's trace context, for the jobs that have none of their own.
    """
    found = _FORM.decode(raw).jobs
    if not 1 <= len(found) <= LIMITS.batch_items:
        advice = "split it" if found else "leave it out"
        raise InvalidRequest(f"a batch has 1 to {LIMITS.batch_items} jobs, not {len(found)}; {advice}")
    return [_item(bytes(item), accept, traceparent) for item in found]


def _item(raw: bytes, accept: Accept, traceparent: str | None) -> NewJob | BananasError:
    if len(raw) > LIMITS.payload_bytes + bodies.ENVELOPE_BYTES:
        return too_large("job with its payload", len(raw), LIMITS.payload_bytes + bodies.ENVELOPE_BYTES)
    try:
        return accept(bodies.new_job(raw, traceparent=traceparent))
    except BananasError as e:
        return e


def submit(queue: Queue, wanted: Sequence[NewJob | BananasError]) -> list[tuple[NewJob, Enqueued] | BananasError]:
    """Enqueue what is a job. Raises RedisUnavailable when Redis has taken nothing at all for want of an answer."""
    jobs = [job for job in wanted if isinstance(job, NewJob)]
    answers = queue.enqueue_many(jobs)
    lost = [answer for answer in answers if isinstance(answer, RedisUnavailable)]
    if lost and len(lost) == len(answers):
        raise lost[0]
    pairs = iter(zip(jobs, answers, strict=True))
    out: list[tuple[NewJob, Enqueued] | BananasError] = []
    for item in wanted:
        if isinstance(item, BananasError):
            out.append(item)
            continue
        job, answer = next(pairs)
        out.append(answer if isinstance(answer, BananasError) else (job, answer))
    return out


def answer(
    outcomes: Sequence[tuple[NewJob, Enqueued] | BananasError],
    public: Callable[[NewJob, Enqueued], dict[str, Any]],
    names: Callable[[], list[str]],
) -> tuple[dict[str, Any], int]:
    """The body and its status: 202 when every job was taken, else 207.

    Args:
        public: how a job that was taken is shown.
        names: the deployed functions, asked for at most once.
    """
    has_unknown = any(isinstance(outcome, UnknownFunction) for outcome in outcomes)
    deployed = names() if has_unknown else []
    shown = [
        {"error": _problem(outcome, deployed)} if isinstance(outcome, BananasError) else public(*outcome)
        for outcome in outcomes
    ]
    refused = sum(isinstance(outcome, BananasError) for outcome in outcomes)
    return {"jobs": shown, "accepted": len(shown) - refused, "refused": refused}, 207 if refused else 202


def _problem(error: BananasError, deployed: Sequence[str]) -> dict[str, Any]:
    if isinstance(error, UnknownFunction):
        detail, facts = hints.unknown_function(error, deployed)
        return problems.body(error.code, detail, facts)
    return problems.body(error.code, str(error), error.details)
