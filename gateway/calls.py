"""Every call of the HTTP API in one table: what it takes, what it answers, and which problems it may tell.

Read by ``gateway.openapi`` only. A test compares the table with the app's routes, both ways; scopes are in
``gateway.auth`` and the shapes of answers in ``gateway.shapes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec

from bananas import spec
from bananas.settings import LIMITS
from gateway import access_shapes as access
from gateway import bodies, httpevent, letters, lists, shapes, versions
from gateway.answers import JSON
from gateway.guard import OCTETS
from gateway.routes.tokens import NewToken

TEXT: Final = "text/plain"


def _documented(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The same struct for a schema: raw JSON is any JSON."""
    members: list[Any] = []
    for one in msgspec.structs.fields(kind):
        is_raw = one.type is msgspec.Raw
        members.append((one.name, Any if is_raw else one.type, None if is_raw else one.default))
    required = [member[:2] for member in members if member[2] is msgspec.NODEFAULT]
    optional = [member for member in members if member[2] is not msgspec.NODEFAULT]
    made = msgspec.defstruct(kind.__name__, [*required, *optional], forbid_unknown_fields=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return made


_Job: Any = _documented(bodies.SubmitBody)


class BatchOf(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /jobs/batch``: bodies of ``POST /jobs``, each taken or refused by itself."""

    jobs: Annotated[
        list[Any],
        msgspec.Meta(
            min_length=1,
            max_length=LIMITS.batch_items,
            extra_json_schema={"items": {"anyOf": [{"$ref": "#/components/schemas/SubmitBody"}, {}]}},
        ),
    ]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An object without members."""


class WaitQuery(msgspec.Struct):
    """Seconds to wait for the end of the job."""

    wait: Annotated[float, msgspec.Meta(ge=0)] | None = None


class FollowQuery(msgspec.Struct):
    """1: as server-sent events, until the job is over."""

    follow: Literal["0", "1"] | None = None


class DiffQuery(msgspec.Struct):
    """Two versions to compare."""

    diff: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{12}\.\.[0-9a-f]{12}$")] | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries; without a type it is bytes."""

    kind: Any = None
    media: str = JSON
    #: A body may be left out.
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call answers when all went well; without a type and a media type it has no body."""

    kind: Any = None
    media: str = ""
    headers: tuple[str, ...] = ()
    #: Another media type that it may have.
    or_media: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One method of one path."""

    method: str
    path: str
    #: Flask's, as in ``gateway.auth``.
    endpoint: str
    says: str
    answers: Mapping[int, Answer]
    body: Body | None = None
    query: type | None = None
    #: Request headers.
    headers: tuple[str, ...] = ()
    #: Codes of problems, beyond those that every call has.
    problems: tuple[str, ...] = ()
    #: False: what is refused is told in another API's words.
    has_problem_bodies: bool = True


def _ok(kind: Any, *headers: str) -> dict[int, Answer]:
    return {200: Answer(kind, JSON, headers)}


_JOB: Final = ("unknown-job", "job-expired")
_FUNCTION: Final = ("unknown-function", "invalid-request")
_DEPLOY: Final = ("invalid-request", "unknown-bundle", "unknown-pool", "unknown-secret")
_BUSY: Final = ("queue-full", "rate-limited")
_NEW: Final = ("invalid-request", "unknown-function", "unknown-pool", "no-secret-key", *_BUSY)
_RAN: Final = ("handler-error", "sandbox-died", "sandbox-start", "timeout", "job-cancelled")
_CALLED: Final = (*_RAN, "unknown-function", "invalid-request", *_BUSY, "no-live-runner", "unavailable")
_KEY: Final = (bodies.KEY_HEADER,)
_ANSWERED: Final = ("Bananas-Job-Id", "Bananas-Duplicate", "Server-Timing")

_RAW: Final = tuple(
    Call(
        *(method, path, "raw.call", "Call a function with the whole HTTP request; it may answer with one"),
        {200: Answer(media="*/*", headers=_ANSWERED)},
        body=None if method in ("GET", "HEAD") else Body(media="*/*", is_optional=True),
        headers=_KEY,
        problems=(*_CALLED, "job-expired", "bad-answer", "origin-not-allowed", "too-large"),
    )
    for method in httpevent.METHODS
    for path in ("/fn/{name}", "/fn/{name}/{path}")
)

CALLS: Final = (
    Call(
        *("GET", "/jobs", "jobs.page", "List jobs, newest first"),
        _ok(shapes.JobPage),
        query=lists.JobsQuery,
        problems=("invalid-request",),
    ),
    Call(
        *("POST", "/jobs", "jobs.submit", "Queue a job; 200 when an earlier job has its unique key"),
        {202: Answer(shapes.Submitted, JSON, ("Location",)), 200: Answer(shapes.Submitted, JSON, ("Location",))},
        body=Body(_Job),
        headers=_KEY,
        problems=(*_NEW, "unknown-job", "version-gone"),
    ),
    Call(
        *("POST", "/jobs/batch", "jobs.submit_many", "Queue many jobs; 207 when some were refused"),
        {202: Answer(shapes.BatchAnswer, JSON), 207: Answer(shapes.BatchAnswer, JSON)},
        body=Body(BatchOf),
        problems=("invalid-request",),
    ),
    Call(
        *("GET", "/jobs/{job_id}", "jobs.show", "The record of a job, as soon as it is over when asked to wait"),
        _ok(shapes.Record),
        query=WaitQuery,
        problems=(*_JOB, "invalid-request", "queue-full", "unavailable"),
    ),
    Call(
        *("DELETE", "/jobs/{job_id}", "jobs.cancel", "Cancel a job, also one that runs"),
        _ok(shapes.Moved),
        problems=(*_JOB, "job-finished"),
    ),
    Call(
        *("GET", "/jobs/{job_id}/payload", "jobs.payload", "What a job is called with, as it was sent"),
        _ok(Any),
        problems=_JOB,
    ),
    Call(
        *("GET", "/jobs/{job_id}/logs", "jobs.logs", "What every attempt printed, oldest first"),
        {200: Answer(str, TEXT, or_media="text/event-stream")},
        query=FollowQuery,
        problems=(*_JOB, "invalid-request", "unavailable"),
    ),
    Call(
        *("POST", "/jobs/{job_id}/replay", "dead.replay_one", "Put a failed job back into the queue"),
        {202: Answer(shapes.Moved, JSON, ("Location",))},
        body=Body(_documented(letters.OneBody), is_optional=True),
        headers=_KEY,
        problems=(*_JOB, *_NEW, "job-not-dead", "version-gone"),
    ),
    Call(
        *("GET", "/dead", "dead.page", "List failed jobs, oldest first"),
        _ok(shapes.LetterPage),
        query=letters.PageQuery,
        problems=("invalid-request",),
    ),
    Call(
        *("POST", "/dead/replay", "dead.replay", "Put failed jobs back, by ids or by filter"),
        _ok(shapes.Replayed),
        body=Body(letters.ReplayBody),
        headers=_KEY,
        problems=("invalid-request",),
    ),
    Call(
        *("POST", "/dead/purge", "dead.purge", "Drop failed jobs for good, by ids or by filter"),
        _ok(shapes.Purged),
        body=Body(letters.PurgeBody),
        problems=("invalid-request",),
    ),
    Call(*("GET", "/functions", "functions.list", "Every function and what it does"), _ok(shapes.Functions)),
    Call(
        *("GET", "/functions/{name}", "functions.show", "One function"),
        _ok(shapes.Function),
        problems=_FUNCTION,
    ),
    Call(
        *("PUT", "/functions/{name}", "functions.deploy", "Make a version the current one"),
        _ok(shapes.Deployed),
        body=Body(spec.Deployment),
        problems=_DEPLOY,
    ),
    Call(
        *("DELETE", "/functions/{name}", "functions.remove", "Remove a function; its queued jobs still run"),
        {204: Answer()},
        problems=_FUNCTION,
    ),
    Call(
        *("GET", "/functions/{name}/versions", "functions.versions", "Kept versions, and what differs between two"),
        _ok(shapes.Versions),
        query=DiffQuery,
        problems=(*_FUNCTION, "version-gone"),
    ),
    Call(
        *("POST", "/functions/{name}/rollback", "functions.rollback", "Go back to a kept version"),
        _ok(shapes.RolledBack),
        body=Body(versions.RollbackBody, is_optional=True),
        problems=(*_FUNCTION, *_DEPLOY, "version-gone"),
    ),
    Call(
        *("POST", "/functions/{name}/invoke", "functions.invoke", "Call a function and wait for its result"),
        _ok(Any, *_ANSWERED),
        body=Body(Any, is_optional=True),
        headers=_KEY,
        problems=(*_CALLED, "job-expired"),
    ),
    Call(
        *("GET", "/bundles/{sha256}", "functions.has_bundle", "Whether an archive is here; never its content"),
        {200: Answer(), 404: Answer()},
        problems=("invalid-request",),
    ),
    Call(
        *("PUT", "/bundles/{sha256}", "functions.put_bundle", "Upload an archive under its SHA-256"),
        {201: Answer(shapes.Stored, JSON)},
        body=Body(media=OCTETS),
        problems=("invalid-request",),
    ),
    Call(*("GET", "/pools", "operate.pools", "Every pool and what happens in it"), _ok(shapes.Pools)),
    Call(
        *("PUT", "/pools/{name}", "operate.put_pool", "Create or change a pool"),
        _ok(shapes.Changed),
        body=Body(spec.PoolSpec),
        problems=("invalid-request",),
    ),
    Call(*("GET", "/runtimes", "operate.runtimes", "What runners run each runtime with"), _ok(shapes.Runtimes)),
    Call(*("GET", "/runners", "operate.runners", "Every live runner"), _ok(shapes.Runners)),
    Call(*("GET", "/schedules", "schedules.all", "Every schedule and when it fires next"), _ok(shapes.Schedules)),
    Call(
        *("POST", "/schedules/{function}/pause", "schedules.pause", "Let nothing fire until it is resumed"),
        _ok(shapes.Paused),
        body=Body(Nothing, is_optional=True),
        problems=("invalid-request", "unknown-schedule"),
    ),
    Call(
        *("POST", "/schedules/{function}/resume", "schedules.resume", "Let it go on from now"),
        _ok(shapes.Paused),
        body=Body(Nothing, is_optional=True),
        problems=("invalid-request", "unknown-schedule"),
    ),
    Call(*("GET", "/tokens", "tokens.all", "Every API token, without its text"), _ok(access.TokenList)),
    Call(
        *("POST", "/tokens", "tokens.create", "Make a token; its text is told this once"),
        {201: Answer(access.CreatedToken, JSON)},
        body=Body(NewToken),
        problems=("invalid-request",),
    ),
    Call(
        *("DELETE", "/tokens/{token_id}", "tokens.remove", "Take a token back"),
        {204: Answer()},
        problems=("unknown-token",),
    ),
    Call(
        *("GET", "/callback-keys", "callbacks.keys", "What receivers check callbacks with, the latest first"),
        _ok(access.CallbackKeys),
        problems=("no-secret-key",),
    ),
    Call(*("GET", "/secrets", "secrets.all", "Every secret, never a value"), _ok(access.SecretList)),
    Call(
        *("PUT", "/secrets/{name}", "secrets.put", "Set a secret"),
        _ok(access.SecretStored),
        body=Body(media=OCTETS),
        problems=("invalid-request", "no-secret-key"),
    ),
    Call(
        *("DELETE", "/secrets/{name}", "secrets.remove", "Forget a secret that no function needs"),
        {204: Answer()},
        problems=("invalid-request", "unknown-secret", "secret-in-use"),
    ),
    Call(*("GET", "/healthz", "operate.healthz", "This process answers"), _ok(shapes.Alive)),
    Call(
        *("GET", "/readyz", "operate.readyz", "Jobs can be taken and kept"), _ok(shapes.Ready), problems=("not-ready",)
    ),
    Call(*("GET", "/metrics", "operate.metrics", "Prometheus text"), {200: Answer(str, TEXT)}),
    *_RAW,
    Call(
        *("POST", "/2015-03-31/functions/{target}/invocations", "aws.invoke", "AWS's invoke call"),
        {200: Answer(Any, JSON, _ANSWERED), 202: Answer(), 204: Answer()},
        body=Body(media="*/*", is_optional=True),
        problems=(*_CALLED, "origin-not-allowed"),
        has_problem_bodies=False,
    ),
    Call(*("GET", "/openapi.json", "openapi.document", "This document"), _ok(dict[str, Any])),
)
