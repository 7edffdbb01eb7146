"""The shape of every answer, as types: what the OpenAPI document says of them. Decides nothing and encodes nothing.

The answers are made where they are known (``records``, ``lists``, ``routes/``); a test sends generated requests to the
app and checks its answers against these shapes, so none of them can be wrong for long.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from bananas.health import Check
from bananas.job import DeadReason, JobState
from bananas.spec import Bundles, FunctionSpec, PoolSpec, Priority

Instant = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
Id = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]


class Shape(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Problem(msgspec.Struct):
    """RFC 9457; further members are facts such as ``job`` or ``outcome``."""

    type: str
    title: str
    status: int
    detail: str
    #: Stable.
    code: str


class Submitted(Shape):
    """A job that is in Redis."""

    id: Id
    status: JobState
    name: str
    version: str
    pool: str
    duplicate: bool


class BatchAnswer(Shape):
    """One answer for each job, in their order."""

    jobs: list[dict[str, Any]]
    accepted: int
    refused: int


class Attempt(Shape):
    """One execution."""

    attempt: int
    outcome: str
    start: str | None
    start_reason: str | None
    runner: str
    sandbox: str | None
    nth_use: int
    timings: dict[str, float]
    error: dict[str, Any] | None
    logs: str
    log_bytes: int
    log_truncated: bool


class Listed(Shape):
    """A job in a list."""

    id: Id
    name: str
    version: str
    pool: str
    priority: Priority
    status: JobState
    created_at: Instant
    scheduled_for: Instant | None
    started_at: Instant | None
    finished_at: Instant | None
    attempts: int
    reason: str | None


class Callback(Shape):
    """What became of telling the job's end to its callback_url."""

    #: Without the values of its query.
    url: str
    status: Literal["waiting", "pending", "delivered", "failed"]
    tries: int
    last_error: str | None


class Record(Listed):
    """Everything about a job."""

    waiting_for: Literal["runner", "engine", "gpus", "max_concurrency"] | None
    waiting_detail: str | None
    max_retries: int
    timeout_ms: int
    progress: Any
    result: Any
    error: dict[str, Any] | None
    callback: Callback | None
    history: list[Attempt]


class JobPage(Shape):
    """Some jobs; null: there is nothing more."""

    jobs: list[Listed]
    cursor: str | None


class Moved(Shape):
    """A job and where it is now."""

    id: Id
    status: JobState


class ShortError(Shape):
    """Without a traceback, shortened."""

    type: str
    message: str


class Letter(Shape):
    """A failed job."""

    id: Id
    name: str
    version: str
    pool: str
    reason: DeadReason
    error: ShortError | None
    died_at: Instant
    attempts: int


class LetterPage(Shape):
    """Some failed jobs."""

    letters: list[Letter]
    cursor: str | None


class Refusal(Shape):
    """Why a letter stayed."""

    id: str
    code: str
    detail: str


class Replayed(Shape):
    """What a replay did."""

    moved: list[str]
    refused: list[Refusal]
    cursor: str | None


class Purged(Shape):
    """What a purge did."""

    purged: int
    cursor: str | None


class Function(Shape):
    """A function's current version and what it does."""

    name: str
    version: str
    spec: FunctionSpec
    bundles: Bundles
    abi: str
    deployed_at: Instant
    running: int
    parked: int


class Functions(Shape):
    """Every function."""

    functions: list[Function]


class Deployed(Shape):
    """The version that is current now."""

    name: str
    version: str
    changed: bool


class RolledBack(Deployed):
    """The same, and the one that was."""

    previous: str


class KeptVersion(Shape):
    """A version that can be gone back to."""

    version: str
    current: bool
    deployed_at: Instant
    spec: FunctionSpec
    bundles: Bundles
    abi: str


class Change(Shape):
    """One setting that differs; null: not there."""

    setting: str
    from_: Any = msgspec.field(name="from")
    to: Any


class Diff(Shape):
    """What differs between two versions."""

    from_: str = msgspec.field(name="from")
    to: str
    changes: list[Change]


class Versions(Shape):
    """Kept versions, deployed last first."""

    name: str
    versions: list[KeptVersion]
    diff: Diff | None


class Stored(Shape):
    """An archive that is here."""

    sha256: str


class Queued(Shape):
    """Jobs that wait, by priority."""

    high: int
    normal: int
    low: int


class Pool(Shape):
    """A pool and what happens in it."""

    name: str
    spec: PoolSpec
    queued: Queued
    processing: int
    runners: int
    waits_for_runner: bool


class Pools(Shape):
    """Every pool."""

    pools: list[Pool]


class Changed(Shape):
    """Whether it was another before."""

    name: str
    changed: bool


class Schedule(Shape):
    """What fires when."""

    function: str
    cron: str
    tz: str
    catchup: str
    overlap: str
    paused: bool
    last_slot: Instant | None
    next: list[Instant]
    last_job: str | None
    held: int
    fired: int
    skipped: int
    missed: int
    problem: str | None


class Schedules(Shape):
    """Every schedule."""

    schedules: list[Schedule]


class Paused(Shape):
    """Whether a schedule fires."""

    function: str
    paused: bool
    changed: bool


class Runtime(Shape):
    """What runners run a runtime with."""

    image: str
    image_id: str
    python: str
    node: str
    machine: str
    libc: str
    abi: str


class Runtimes(Shape):
    """By name."""

    runtimes: dict[str, Runtime]


class Runner(Shape):
    """A live runner."""

    id: str
    host: str
    pid: int
    pools: list[str]
    seen_at: Instant
    started_at: Instant
    busy: int
    sandboxes: dict[str, int]
    gpus: int
    #: Pool → why it takes none of its jobs for now.
    held_up: dict[str, Literal["engine", "gpus"]]


class Runners(Shape):
    """Every live runner."""

    runners: list[Runner]


class Alive(Shape):
    """The process answers."""

    status: Literal["ok"]


class Ready(Shape):
    """Jobs can be taken and kept."""

    status: Literal["ready"]
    checks: list[Check]
