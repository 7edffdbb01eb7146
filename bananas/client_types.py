"""What the gateway answers about jobs, as types: the shapes behind the dictionaries that ``bananas.client`` returns.

They describe and check nothing at run time. A test compares them with ``gateway.shapes``, so they cannot fall behind.
Times are RFC 3339 texts in UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, NotRequired, TypedDict, final

from bananas.spec import Priority

Status = Literal["scheduled", "pending", "processing", "completed", "failed", "cancelled"]
#: ``"10s"``-like, or a number of seconds.
Time = str | int | float


class JobOptions(TypedDict, total=False):
    """What may be said about a new job besides its function and payload; None counts as not given."""

    priority: Priority | None
    #: Only one that the function allows.
    pool: str | None
    delay: Time | None
    #: Needs a zone; excludes ``delay``.
    run_at: datetime | str | None
    #: Fewer than the function has.
    retries: int | None
    #: Shorter than the function's.
    timeout: Time | None
    #: Fail it if no attempt has begun by then.
    expires_after: Time | None
    #: A second job of the function with the same key is the first one.
    unique_key: str | None
    #: W3C trace context, which the handler gets.
    traceparent: str | None
    #: Where the job's end is told, by a request that ``bananas.webhooks.verify`` checks.
    callback_url: str | None
    #: The id of an earlier job of the function: its version and limits count instead of the current ones.
    like: str | None


class NewJob(JobOptions):
    """One job of a batch."""

    name: str
    payload: NotRequired[Any]


@final
class Submitted(TypedDict):
    """A job that is safe in Redis."""

    id: str
    status: Status
    name: str
    version: str
    pool: str
    #: True when an earlier job has the same unique key; all else is that job's.
    duplicate: bool


@final
class Refused(TypedDict):
    """A job of a batch that was not taken: an RFC 9457 problem with ``code`` and ``detail``."""

    error: dict[str, Any]


class Attempt(TypedDict):
    """One execution of a job."""

    attempt: int
    outcome: str
    start: str | None
    start_reason: str | None
    runner: str
    sandbox: str | None
    nth_use: int
    #: Milliseconds: queued_ms, wait_sandbox_ms, init_ms, run_ms, total_ms.
    timings: dict[str, float]
    #: ``{"type", "message", "traceback"?}``
    error: dict[str, Any] | None
    #: The end of what it printed.
    logs: str
    log_bytes: int
    log_truncated: bool


class Callback(TypedDict):
    """What became of telling the job's end to its ``callback_url``."""

    #: Without the values of its query.
    url: str
    status: Literal["waiting", "pending", "delivered", "failed"]
    tries: int
    last_error: str | None


class JobInShort(TypedDict):
    """A job in a list."""

    id: str
    name: str
    version: str
    pool: str
    priority: Priority
    status: Status
    created_at: str
    scheduled_for: str | None
    started_at: str | None
    finished_at: str | None
    attempts: int
    #: Why it failed for good.
    reason: str | None


class Job(JobInShort):
    """Everything about a job."""

    waiting_for: Literal["runner", "engine", "gpus", "max_concurrency"] | None
    waiting_detail: str | None
    max_retries: int
    timeout_ms: int
    progress: Any
    #: What the handler returned; None until it has.
    result: Any
    #: ``{"type", "message", "traceback"?}`` of the last attempt that failed.
    error: dict[str, Any] | None
    callback: Callback | None
    history: list[Attempt]


class JobPage(TypedDict):
    """Some jobs; ``cursor`` leads to the next page and is None on the last one."""

    jobs: list[JobInShort]
    cursor: str | None


class Moved(TypedDict):
    """A job and where it is now."""

    id: str
    status: Status


@final
class LogPiece(TypedDict):
    """Something that a job printed; not always a whole line."""

    event: Literal["log"]
    attempt: int
    text: str


@final
class LogEnd(TypedDict):
    """The job is over."""

    event: Literal["end"]
    id: str
    status: Status


class Letter(TypedDict):
    """A failed job."""

    id: str
    name: str
    version: str
    pool: str
    reason: str
    #: ``{"type", "message"}``
    error: dict[str, Any] | None
    died_at: str
    attempts: int


class LetterPage(TypedDict):
    """Some failed jobs, and the cursor of the next page."""

    letters: list[Letter]
    cursor: str | None
