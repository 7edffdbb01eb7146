"""How jobs are written in Redis: arguments of scripts and fields of a hash, to and from ``bananas.job``. Pure.

Called by ``bananas.queue`` and ``bananas.dead_letters`` only; the scripts' headers are the other half of the contract.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import Any, Final

import msgspec

from bananas import errors, keys
from bananas.job import (
    Attempt,
    CallbackState,
    Claim,
    DeadReason,
    Enqueued,
    JobRecord,
    JobState,
    NewJob,
    Outcome,
    Reply,
    Settlement,
)
from bananas.settings import LIMITS
from bananas.spec import RetrySpec
from bananas.units import show_rate

_RETRY = msgspec.json.Decoder(RetrySpec)
#: Names of the histogram's buckets, in order.
_BUCKETS: Final = (*map(str, keys.DURATION_BUCKETS_MS), "inf")
#: How the scripts call a pending job that waits for its function's ``max_concurrency``.
_PARKED: Final = "parked"
#: The fields that ``record`` reads.
RECORD: Final = (
    *("fn", "ver", "pool", "prio", "state", "created", "due", "claimed", "finished", "token", "failures", "losses"),
    *("maxr", "timeout", "reason", "result", "error", "hist", "progress", "expires"),
    *("cb", "cbstate", "cbtries", "cberr"),
)


def state_of(text: str) -> JobState:
    """The API's state of a stored one."""
    return JobState.PENDING if text == _PARKED else JobState(text)


def job_args(job: NewJob) -> list[Any]:
    """A job as ``enqueue.lua`` takes it."""
    optional = (job.run_at_ms, job.expires_after_ms, job.reply_to, job.unique_key, job.traceparent, job.callback_url)
    meter = job.meter
    return [
        job.id,
        job.function,
        job.payload,
        *("" if value is None else value for value in (job.pool, job.priority, job.timeout_ms, job.max_retries)),
        job.delay_ms,
        *("" if value is None else value for value in optional),
        *(("", "", "") if meter is None else (meter.token, meter.rate.interval_ms, meter.rate.most)),
        "1" if job.is_sync else "",
        job.like or "",
    ]


def enqueued(job: NewJob, answer: list[Any]) -> Enqueued | errors.BananasError:
    """What ``create`` in the scripts answered; an error is returned, not raised."""
    match [part.decode() if isinstance(part, bytes) else part for part in answer]:
        case ["ok", version, state, pool, timeout, duplicate, job_id]:
            return Enqueued(job_id, version, state_of(state), pool, int(timeout), bool(duplicate))
        case ["unknown_function"]:
            return errors.UnknownFunction(f"no function {job.function!r} is deployed", function=job.function)
        case ["unknown_model"]:
            return errors.UnknownJob(f"function {job.function!r} has no job with the id {job.like}")
        case ["version_gone", version]:
            return errors.VersionGone(
                f"version {version} of function {job.function!r} is not kept any more; submit the job without `like`"
            )
        case ["unknown_pool", allowed]:
            names = allowed.replace(",", ", ")
            return errors.UnknownPool(f"{job.function!r} may not run in pool {job.pool!r}; it allows {names}")
        case ["full", pool, queued]:
            return queue_full(pool, queued)
        case ["callbacks_full", untold]:
            return errors.QueueFull(
                f"{untold} callbacks are not told yet, the limit is {LIMITS.callbacks}; submit later, or without "
                "callback_url"
            )
        case ["limited", scope, name, wait_ms, interval_ms, burst]:
            return _rate_limited(scope, name, int(wait_ms), float(interval_ms), int(burst))
    raise AssertionError(f"a script answered {answer!r}")


def _rate_limited(scope: str, name: str, wait_ms: int, interval_ms: float, burst: int) -> errors.RateLimited:
    rate = show_rate(interval_ms)
    return errors.RateLimited(
        f"{scope} {name} may have {rate} jobs, {burst} at once; the next one in {wait_ms} ms",
        scope=scope,
        limit=f"{rate}, burst {burst}",
        retry_after_ms=wait_ms,
    )


def queue_full(pool: str, queued: int | str) -> errors.QueueFull:
    """The error of a job that finds no room."""
    return errors.QueueFull(f"pool {pool!r} has {queued} jobs waiting, the limit is {LIMITS.queued_jobs}")


def settlement_args(s: Settlement) -> list[Any]:
    """An attempt's end as ``step.lua`` takes it."""
    attempt = s.attempt
    run_ms = attempt.timings.get("run_ms")
    error = msgspec.json.encode(attempt.error) if attempt.error else b""
    reason: DeadReason | None = s.decision.reason
    return [
        s.claim.id,
        s.claim.token,
        s.decision.action,
        s.decision.delay_ms,
        attempt.outcome.value,
        reason.value if reason else "fresh" if _is_fresh(attempt) else "",
        s.result,
        error,
        _encode_attempt(attempt),
        s.logs,
        "" if run_ms is None else duration_bucket(run_ms),
        run_ms or 0,
        s.progress,
    ]


def _is_fresh(attempt: Attempt) -> bool:
    """True when nothing of it has begun: so the job may still expire."""
    return attempt.outcome is Outcome.HELD_UP or (attempt.outcome is Outcome.HANDED_BACK and attempt.start is None)


def _encode_attempt(attempt: Attempt) -> bytes:
    # Structs are encoded in the order of their fields, so the text starts with {"token": as the scripts need it.
    return msgspec.json.encode(attempt)


def duration_bucket(run_ms: float) -> str:
    """The histogram bucket of a run: the smallest upper bound in ms, or ``inf``.

    >>> duration_bucket(3.2), duration_bucket(10.0), duration_bucket(1e9)
    ('5', '10', 'inf')
    """
    return _BUCKETS[bisect_left(keys.DURATION_BUCKETS_MS, run_ms)]


def claim(raw: list[Any], now_ms: int) -> Claim:
    """A claim as ``step.lua`` gives it."""
    (job_id, token, fn, ver, pool, prio, payload, timeout, retry, failures, starts, enqueued_ms, ttl, maxr, *more) = raw
    return Claim(
        id=job_id.decode(),
        token=token,
        function=fn.decode(),
        version=ver.decode(),
        pool=pool.decode(),
        priority=prio.decode(),
        payload=payload,
        timeout_ms=int(timeout),
        retries=_policy(retry, maxr),
        failures=int(failures),
        starts=int(starts),
        enqueued_at_ms=int(enqueued_ms),
        claimed_at_ms=now_ms,
        result_ttl_ms=int(ttl),
        traceparent=more[0].decode() if more else None,
    )


@lru_cache(maxsize=1024)
def _policy(retry: bytes, most: bytes) -> RetrySpec:
    """A job's retries: those of its version, and how many it may have itself."""
    try:
        policy = _RETRY.decode(retry)
    except msgspec.DecodeError:  # written by another release: the job must not be lost for it
        policy = RetrySpec()
    return msgspec.structs.replace(policy, max=int(most))


def record(job_id: str, values: list[Any]) -> JobRecord | None:
    """The record from the fields named in ``RECORD``; None when there is none."""
    f = dict(zip(RECORD, values, strict=True))
    if f["fn"] is None:
        return None
    return JobRecord(
        **in_short(job_id, f),
        token=int(f["token"]),
        failures=int(f["failures"]),
        losses=int(f["losses"]),
        max_retries=int(f["maxr"]),
        timeout_ms=int(f["timeout"]),
        result=f["result"] or None,
        error=f["error"] or None,
        history=f["hist"].split(b"\n") if f["hist"] else [],
        progress=f["progress"] or None,
        is_parked=f["state"].decode() == _PARKED,
        callback=_callback(f),
    )


def _callback(f: dict[str, Any]) -> CallbackState | None:
    if f["cb"] is None:
        return None
    error = (f["cberr"] or b"").decode()
    status = (f["cbstate"] or b"waiting").decode()
    return CallbackState(f["cb"].decode(), status, int(f["cbtries"] or 0), error or None)


def in_short(job_id: str, f: dict[str, Any]) -> dict[str, Any]:
    """What a record and a line of a list have in common, by the names of their fields."""
    state = state_of(f["state"].decode())
    return {
        "id": job_id,
        "function": f["fn"].decode(),
        "version": f["ver"].decode(),
        "pool": f["pool"].decode(),
        "priority": f["prio"].decode(),
        "state": state,
        "created_at_ms": int(f["created"]),
        "due_at_ms": int(f["due"]) if state is JobState.SCHEDULED else None,
        "started_at_ms": int(f["claimed"]) if f["claimed"] else None,
        "finished_at_ms": int(f["finished"]) if f["finished"] else None,
        "reason": f["reason"].decode() if f["reason"] else None,
    }


def may_expire(values: list[Any]) -> bool:
    """True for a job whose ``expires_after`` still counts: it waits for its first attempt."""
    f = dict(zip(RECORD, values, strict=True))
    waits = f["state"] in (b"pending", b"scheduled", b"parked")
    return waits and f["token"] == b"0" and f["expires"] not in (None, b"0")


def reply(message: bytes) -> Reply:
    """What ``notify`` in the scripts pushed to a reply list."""
    job_id, state, attempt, rest = message.split(b"\n", 3)
    return Reply(job_id.decode(), JobState(state.decode()), attempt, inline(rest))


def inline(flagged: bytes) -> bytes | None:
    """``r`` + result, or ``x`` when it was too large to push."""
    return flagged[1:] if flagged[:1] == b"r" else None
