"""The vocabulary of jobs: states, outcomes, and the records that cross process borders.

A *state* belongs to a job, an *outcome* to one attempt of it. Which outcome leads where is decided in
``bananas.retry.decide`` and moved by ``scripts/step.lua``.

What a runner makes for every attempt is a struct, since frozen dataclasses take longer to make.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

import msgspec

from bananas.spec import Priority, RateSpec, RetrySpec


class JobState(StrEnum):
    """Where a job is. A job that waits for a retry is ``scheduled`` with attempts ≥ 1."""

    SCHEDULED = "scheduled"
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How one attempt ended."""

    OK = "ok"
    ERROR = "error"  # the handler raised
    PERMANENT = "permanent"  # the handler raised and said that no retry will help
    TIMEOUT = "timeout"
    OOM = "oom"
    CRASHED = "crashed"  # the process ended without an answer
    START = "start"  # engine or start-up trouble before the invoke frame was sent
    LOST = "lost"  # the lease ran out: its runner is gone
    HANDED_BACK = "handed_back"  # a runner that shuts down returned it untouched
    HELD_UP = "held_up"  # not begun: its runner's engine did not answer, or others had the GPUs
    DISPLACED = "displaced"  # another call in the same sandbox ended all of them
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class DeadReason(StrEnum):
    """Why a job is a dead letter."""

    RETRIES_EXHAUSTED = "retries_exhausted"
    PERMANENT = "permanent"
    POISONED = "poisoned"
    START_FAILED = "start_failed"
    EXPIRED = "expired"


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits; sorts by time of creation."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


@dataclass(frozen=True, slots=True)
class Meter:
    """The rate of the API token that a job came with."""

    token: str
    rate: RateSpec


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to enqueue. None means: what the function says."""

    function: str
    #: JSON text exactly as the client sent it.
    payload: bytes
    id: str = field(default_factory=new_job_id)
    pool: str | None = None
    priority: Priority | None = None
    #: May only lower what the function allows.
    timeout_ms: int | None = None
    #: May only lower what the function allows.
    max_retries: int | None = None
    delay_ms: int = 0
    #: Unix ms; wins over ``delay_ms``.
    run_at_ms: int | None = None
    #: From now until an attempt must have begun; None means never.
    expires_after_ms: int | None = None
    #: Reply list to push the final record to (a waiting gateway process).
    reply_to: str | None = None
    #: A second job of the function with the same key becomes the first one, for a day at least.
    unique_key: str | None = None
    #: W3C trace context of the caller, handed to the handler.
    traceparent: str | None = None
    #: Where the job's end is told, as ``bananas.webhooks.checked_url`` lets it through.
    callback_url: str | None = None
    #: Somebody waits for its end and is told: when it fails it is no dead letter.
    is_sync: bool = False
    #: What the job counts against, beside the rate of its function.
    meter: Meter | None = None
    #: An earlier job of the function: its version and limits count instead of the current ones.
    like: str | None = None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What enqueue answers."""

    id: str
    version: str
    state: JobState
    pool: str
    #: The timeout that was stamped on the job.
    timeout_ms: int
    #: True when an earlier job has the same unique key: all other fields are that job's.
    duplicate: bool = False


class Claim(msgspec.Struct, frozen=True):
    """The right to execute one attempt: valid while ``token`` is the job's and the lease stands."""

    id: str
    token: int
    function: str
    version: str
    pool: str
    priority: Priority
    payload: bytes
    timeout_ms: int
    retries: RetrySpec
    #: Attempts that failed so far (the retry budget).
    failures: int
    #: Start-up failures so far.
    starts: int
    #: Unix ms of Redis: when it became runnable, and when it was claimed.
    enqueued_at_ms: int
    claimed_at_ms: int
    result_ttl_ms: int
    #: W3C trace context that the job was submitted with.
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class CallbackState:
    """What became of telling a job's end to its ``callback_url``."""

    url: str
    #: ``waiting`` for the end, ``pending``, ``delivered`` or ``failed``.
    status: str
    #: Since the job's latest end.
    tries: int
    last_error: str | None


Action = Literal["complete", "retry", "dead", "back"]


class Decision(msgspec.Struct, frozen=True):
    """What happens to the job after an attempt (made by ``bananas.retry.decide``)."""

    action: Action
    #: Until the next attempt, for ``retry``.
    delay_ms: int = 0
    reason: DeadReason | None = None


class Attempt(msgspec.Struct, frozen=True):
    """The report of one attempt, kept in the job's record."""

    token: int
    outcome: Outcome
    runner: str
    #: Unix ms by the runner's clock, for display only.
    started_at_ms: int
    #: ``cold`` (container created for this job), ``stem`` (a started sandbox was bound) or ``warm``.
    start: str | None = None
    #: Why not warm, e.g. ``none_idle``.
    start_reason: str | None = None
    sandbox: str | None = None
    #: The how manieth use of that sandbox this was.
    nth_use: int = 0
    #: Durations in ms: queued, wait_sandbox, init, run, total.
    timings: dict[str, float] = msgspec.field(default_factory=dict)
    #: ``{"type", "message", "traceback"?}`` when the outcome is not ok.
    error: dict[str, Any] | None = None
    log_bytes: int = 0
    log_truncated: bool = False


class Settlement(msgspec.Struct, frozen=True):
    """An attempt's end on its way into Redis."""

    claim: Claim
    attempt: Attempt
    decision: Decision
    #: JSON text of the result; empty unless the outcome is ok.
    result: bytes = b""
    logs: bytes = b""
    #: JSON text of the attempt's last progress, if ``Queue.progress`` may not have kept it yet; else empty.
    progress: bytes = b""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Everything known about a job."""

    id: str
    function: str
    version: str
    pool: str
    priority: str
    state: JobState
    created_at_ms: int
    #: When it may run, while scheduled.
    due_at_ms: int | None
    #: First claim of the latest attempt, and the end of the job.
    started_at_ms: int | None
    finished_at_ms: int | None
    #: Claims so far.
    token: int
    failures: int
    losses: int
    max_retries: int
    timeout_ms: int
    reason: str | None
    result: bytes | None
    #: JSON text of the last error.
    error: bytes | None
    #: One JSON text per attempt, oldest first.
    history: list[bytes]
    #: JSON text of what the latest attempt last told of its progress.
    progress: bytes | None = None
    #: True while it waits for its function's ``max_concurrency``; its state is then ``pending``.
    is_parked: bool = False
    callback: CallbackState | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a waiter gets when a job is over."""

    id: str
    state: JobState
    #: JSON text of the last attempt; ``null`` when the job ended without one.
    attempt: bytes
    #: JSON text of the result; empty unless completed. None when too large to push: read the record.
    result: bytes | None
