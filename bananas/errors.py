"""Every error Bananas raises on purpose, as one tree.

Each class has a stable ``code`` (what API clients and scripts may match on) and says whether the same call
may succeed later. The docstring of a class is its default message, so an error always explains itself.
User code that fails is not an error of ours: it is an ``Outcome`` (see ``bananas.job``).

    BananasError
    ├── ConfigError            a setting or an environment variable is wrong
    ├── ManifestError          bananas.yaml is wrong (carries every problem at once)
    ├── DeployError            packing, installing requirements or uploading failed
    ├── RequestError           what a client sent is wrong
    │   ├── InvalidRequest · PayloadTooLarge · UnsupportedMedia · HostNotAllowed
    │   ├── UnknownFunction · UnknownJob · JobExpired · UnknownBundle · UnknownPool
    │   ├── JobFinished · JobNotDead · VersionGone
    │   ├── UnknownSchedule · UnknownSecret · SecretInUse
    │   └── Unauthorized · Forbidden · UnknownToken
    ├── Unavailable            try again later
    │   ├── RedisUnavailable · QueueFull · RateLimited · NoLiveRunner · SecretKeyMissing
    │   └── EngineUnavailable · GatewayUnreachable · NewerRelease
    ├── SandboxError           the sandbox, not the function, went wrong
    │   ├── SandboxStartError (GpusTaken) · ProtocolError · SandboxDied
    │   └── ImageMissing · SecretUnavailable
    ├── BadSignature           a callback is not from who it seems to be
    ├── ApiError               the gateway answered a client with a problem
    ├── JobFailed              the job that a client waited for did not complete
    └── JobNotOver             it is not over within the time that the client gave it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class BananasError(Exception):
    """Something in Bananas went wrong."""

    #: Stable, lower-case, hyphenated; part of the API.
    code: ClassVar[str] = "error"
    #: True when the same call may succeed later without a change by the caller.
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, **details: Any) -> None:
        """``details`` are extra facts for the problem body; they must be JSON values."""
        super().__init__(message or (type(self).__doc__ or "").strip().split("\n")[0])
        self.details = details


class ConfigError(BananasError):
    """A setting is wrong."""

    code = "config"


class ManifestError(BananasError):
    """bananas.yaml is wrong."""

    code = "manifest"

    def __init__(self, problems: list[str]) -> None:
        """``problems`` are finished lines, ``file:line:col: path: what, and what would be right``."""
        super().__init__("\n".join(problems))
        self.problems = problems


class DeployError(BananasError):
    """The deploy did not happen; the version that served before still serves."""

    code = "deploy"


class RequestError(BananasError):
    """The request is wrong."""

    code = "request"


class InvalidRequest(RequestError):
    """The request body or a parameter is not valid."""

    code = "invalid-request"


class PayloadTooLarge(RequestError):
    """The body is larger than this call allows."""

    code = "too-large"


class UnsupportedMedia(RequestError):
    """The body must be application/json."""

    code = "unsupported-media-type"


class HostNotAllowed(RequestError):
    """Without authentication only requests to a loopback host name are served."""

    code = "host-not-allowed"


class OriginNotAllowed(RequestError):
    """Without authentication no page of another site may call functions."""

    code = "origin-not-allowed"


class UnknownFunction(RequestError):
    """No function of that name is deployed."""

    code = "unknown-function"


class UnknownJob(RequestError):
    """No job has that id."""

    code = "unknown-job"


class JobExpired(RequestError):
    """The job's record was kept for its time and is gone now."""

    code = "job-expired"


class JobFinished(RequestError):
    """The job is already over."""

    code = "job-finished"


class JobNotDead(RequestError):
    """Only failed jobs can be replayed."""

    code = "job-not-dead"


class VersionGone(RequestError):
    """The version of the function is not kept any more."""

    code = "version-gone"


class UnknownBundle(RequestError):
    """No bundle with that digest was uploaded."""

    code = "unknown-bundle"


class Unauthorized(RequestError):
    """A valid token is needed."""

    code = "unauthorized"


class Forbidden(RequestError):
    """The token does not allow this."""

    code = "forbidden"


class BadSignature(BananasError):
    """The callback was not signed with this secret."""

    code = "bad-signature"


class UnknownToken(RequestError):
    """No token has that id."""

    code = "unknown-token"


class UnknownSecret(RequestError):
    """No secret of that name is set."""

    code = "unknown-secret"


class SecretInUse(RequestError):
    """A deployed function needs the secret."""

    code = "secret-in-use"


class UnknownSchedule(RequestError):
    """The function has no schedule."""

    code = "unknown-schedule"


class UnknownPool(RequestError):
    """The job may not run in that pool."""

    code = "unknown-pool"


class Unavailable(BananasError):
    """Not possible right now; try again later."""

    code = "unavailable"
    retryable = True


class RedisUnavailable(Unavailable):
    """Redis does not answer."""

    code = "redis-unavailable"


class QueueFull(Unavailable):
    """The queue is full."""

    code = "queue-full"


class RateLimited(Unavailable):
    """More jobs at a time than a rate allows."""

    code = "rate-limited"


class NoLiveRunner(Unavailable):
    """No live runner serves the pool."""

    code = "no-live-runner"


class SecretKeyMissing(Unavailable):
    """There is no key to seal secrets with."""

    code = "no-secret-key"
    retryable = False


class EngineUnavailable(Unavailable):
    """The Docker Engine does not answer."""

    code = "engine-unavailable"


class GatewayUnreachable(Unavailable):
    """No gateway answers."""

    code = "gateway-unreachable"


class NewerRelease(Unavailable):
    """A newer release of Bananas wrote this."""

    code = "newer-release"


class SandboxError(BananasError):
    """The sandbox, not the function, went wrong."""

    code = "sandbox"


class SandboxStartError(SandboxError):
    """The sandbox did not start."""

    code = "sandbox-start"
    retryable = True


class GpusTaken(SandboxStartError):
    """Other sandboxes have the GPUs."""

    code = "gpus-taken"


class ImageMissing(SandboxError):
    """The runtime's image is not on this engine."""

    code = "image-missing"


class SecretUnavailable(SandboxError):
    """A secret that the function needs cannot be had."""

    code = "secret-unavailable"


class SandboxDied(SandboxError):
    """The sandbox ended before it answered."""

    code = "sandbox-died"


class ProtocolError(SandboxError):
    """The sandbox sent something that the shim protocol does not allow."""

    code = "protocol"


class ApiError(BananasError):
    """The gateway answered with a problem."""

    code = "api"

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        """``status`` is the HTTP status, ``problem`` the decoded RFC 9457 body."""
        detail = problem.get("detail") or problem.get("title") or f"HTTP {status}"
        super().__init__(str(detail), **problem)
        self.status = status
        self.problem = problem
        #: Seconds after which the gateway wants to be asked again, if it says so.
        self.retry_after_s: float | None = None


class JobFailed(BananasError):
    """The job is over and did not complete."""

    code = "job-failed"

    def __init__(self, job: Mapping[str, Any]) -> None:
        """``job`` is its record (``bananas.client_types.Job``)."""
        reason = f" ({job['reason']})" if job.get("reason") else ""
        error = job.get("error") or {}
        what = f": {error.get('type')}: {error.get('message')}" if error else ""
        tries = f"{job['attempts']} attempt{'s'[: job['attempts'] != 1]}"
        super().__init__(f"job {job['id']} {job['status']}{reason} after {tries}{what}")
        self.job = job


class JobNotOver(BananasError):
    """The job is not over yet."""

    code = "job-not-over"
    retryable = True

    def __init__(self, job: Mapping[str, Any], timeout_s: float) -> None:
        """``job`` is its record (``bananas.client_types.Job``)."""
        job_id, status = job["id"], job["status"]
        super().__init__(
            f"job {job_id} is still {status} after {timeout_s:g} s; see it with `bananas jobs show {job_id}`"
        )
        self.job = job
