"""A job's record as the API shows it: the stored fields under their public names. Pure.

Results and errors are put in as the bytes that were stored; only the report of each attempt is decoded, since its
fields get other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bananas import webhooks
from bananas.job import CallbackState, JobRecord
from bananas.settings import LIMITS
from gateway.answers import iso, raw_json

_NULL = msgspec.Raw(b"null")


class AttemptReport(msgspec.Struct, frozen=True):
    """``bananas.job.Attempt`` as stored, with the error left undecoded."""

    token: int
    outcome: str
    runner: str
    start: str | None = None
    start_reason: str | None = None
    sandbox: str | None = None
    nth_use: int = 0
    timings: dict[str, float] = msgspec.field(default_factory=dict)
    error: msgspec.Raw = _NULL
    log_bytes: int = 0
    log_truncated: bool = False


class AttemptError(msgspec.Struct, frozen=True):
    """What every attempt's error says of itself."""

    type: str = "Error"
    message: str = ""


_ATTEMPT: msgspec.json.Decoder[AttemptReport | None] = msgspec.json.Decoder(AttemptReport | None)
_ERROR: msgspec.json.Decoder[AttemptError | None] = msgspec.json.Decoder(AttemptError | None)


def report(attempt: bytes) -> AttemptReport | None:
    """A stored attempt; None for the ``null`` of a job that ended without one."""
    return _ATTEMPT.decode(attempt)


def describe_error(error: bytes | None) -> str:
    """``ValueError: boom``; empty when there is no error."""
    told = _ERROR.decode(error) if error else None
    return f"{told.type}: {told.message}" if told else ""


def short_error(error: bytes | None, most_chars: int) -> dict[str, str] | None:
    """Type and message of a stored error, shortened; None without one."""
    told = _ERROR.decode(error) if error else None
    if told is None:
        return None
    message = told.message if len(told.message) <= most_chars else told.message[:most_chars] + "…"
    return {"type": told.type, "message": message}


def has_logs(record: JobRecord) -> bool:
    """True when some attempt in the record printed something."""
    return any((attempt := report(line)) is not None and attempt.log_bytes > 0 for line in record.history)


def public(record: JobRecord, logs: Mapping[int, bytes], hold_up: Mapping[str, Any]) -> dict[str, Any]:
    """The record as docs/http-api.md shows it.

    Args:
        logs: the attempts' logs by token.
        hold_up: what the job waits for, see ``gateway.live``.
    """
    return {
        "id": record.id,
        "name": record.function,
        "version": record.version,
        "pool": record.pool,
        "priority": record.priority,
        "status": record.state.value,
        **hold_up,
        "created_at": iso(record.created_at_ms),
        "scheduled_for": iso(record.due_at_ms),
        "started_at": iso(record.started_at_ms),
        "finished_at": iso(record.finished_at_ms),
        "attempts": record.token,
        "max_retries": record.max_retries,
        "timeout_ms": record.timeout_ms,
        "reason": record.reason,
        "progress": raw_json(record.progress),
        "result": raw_json(record.result),
        "error": raw_json(record.error),
        "callback": _callback(record.callback),
        "history": [_attempt(line, logs) for line in record.history],
    }


def _callback(callback: CallbackState | None) -> dict[str, Any] | None:
    if callback is None:
        return None
    return {
        "url": webhooks.shown(callback.url),
        "status": callback.status,
        "tries": callback.tries,
        "last_error": callback.last_error,
    }


def _attempt(line: bytes, logs: Mapping[int, bytes]) -> dict[str, Any]:
    attempt = msgspec.json.decode(line, type=AttemptReport)
    return {
        "attempt": attempt.token,
        "outcome": attempt.outcome,
        "start": attempt.start,
        "start_reason": attempt.start_reason,
        "runner": attempt.runner,
        "sandbox": attempt.sandbox,
        "nth_use": attempt.nth_use,
        "timings": attempt.timings,
        "error": attempt.error,
        "logs": _tail(logs.get(attempt.token, b"")),
        "log_bytes": attempt.log_bytes,
        "log_truncated": attempt.log_truncated,
    }


def _tail(text: bytes) -> str:
    """The last ``LIMITS.log_tail_bytes`` of a log, not beginning inside a character."""
    if len(text) > LIMITS.log_tail_bytes:
        text = text[-LIMITS.log_tail_bytes :].lstrip(bytes(range(0x80, 0xC0)))
    return text.decode(errors="replace")


def server_timing(attempt: AttemptReport) -> str:
    """The ``Server-Timing`` header of an attempt: where its milliseconds went.

    >>> server_timing(AttemptReport(1, "ok", "r", start="warm", timings={"run_ms": 0.3, "total_ms": 0.9}))
    'sandbox;desc="warm", run;dur=0.3, total;dur=0.9'
    """
    parts = []
    for name, key in _TIMINGS:
        words = [name]
        if name == "sandbox" and attempt.start in ("warm", "stem", "cold"):
            words.append(f'desc="{attempt.start}"')
        if key in attempt.timings:
            words.append(f"dur={attempt.timings[key]:g}")
        if len(words) > 1:
            parts.append(";".join(words))
    return ", ".join(parts)


_TIMINGS = (
    ("queued", "queued_ms"),
    ("sandbox", "wait_sandbox_ms"),
    ("init", "init_ms"),
    ("run", "run_ms"),
    ("total", "total_ms"),
)
