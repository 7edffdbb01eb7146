"""One attempt: get a sandbox, send the call, wait until the deadline, say how it ended.

Decides the *outcome* of an attempt; what that means for the job is ``bananas.retry``. Never talks to Redis: versions
come from a callable, the settlement goes back to the worker. An attempt whose lease is lost is ended, not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bananas import events, retry
from bananas.errors import (
    BananasError,
    DeployError,
    EngineUnavailable,
    GpusTaken,
    ProtocolError,
    RequestError,
    SandboxDied,
    SandboxError,
    Unavailable,
)
from bananas.job import Attempt, Claim, Outcome, Settlement
from bananas.protocols import CallReply, Clock, ExitInfo, HandlerLoadError, Invocation, SandboxProfile, Secret
from bananas.settings import LIMITS
from bananas.spec import Version
from runner.masking import NO_MASK, Mask
from runner.pool import SandboxPool
from runner.reasons import EndReason, of_failure
from runner.slot import Bindings, Seat

GetVersion = Callable[[str, str], Version]
GetProfile = Callable[[str, Version], SandboxProfile]
GetSecrets = Callable[[Version], dict[str, Secret]]


class LogBuffer:
    """What an attempt prints, up to the cap; the shim has the same cap, so going over it here means a forged frame."""

    def __init__(self, cap_bytes: int = LIMITS.log_bytes) -> None:
        self._cap_bytes = cap_bytes
        self._parts = bytearray()
        self.truncated = False

    def __call__(self, data: bytes) -> None:
        """Take a piece of output."""
        room = self._cap_bytes - len(self._parts)
        self._parts += data[:room]
        # The shim reports a cut by a frame without data.
        self.truncated = self.truncated or len(data) > room or not data

    @property
    def size_bytes(self) -> int:
        """How much is kept."""
        return len(self._parts)

    def text(self) -> bytes:
        """Everything kept."""
        return bytes(self._parts)


@dataclass(eq=False, slots=True)
class Running:
    """An attempt in flight, as the heartbeat and the inbox see it."""

    claim: Claim
    #: Monotonic seconds of the last moment at which the lease was known to stand.
    lease_seen_s: float
    seat: Seat | None = None
    logs: LogBuffer = field(default_factory=LogBuffer)
    mask: Mask = NO_MASK
    #: JSON text of the progress it told last, and of what the record is known to have of it.
    progress: bytes | None = None
    progress_kept: bytes | None = None
    #: Why it must end without a report; empty while it may go on.
    abandoned: str = ""
    #: True when it goes back to the queue because the runner shuts down.
    handed_back: bool = False
    #: True once it has given its sandbox back: only its report is still on the way.
    over: bool = False
    #: True once user code may have run.
    sent: bool = False
    started_at_ms: int = 0

    def abandon(self, why: str) -> None:
        """End it, unless it is over: the sandbox dies now, the greenlet that runs it notices and reports nothing.

        Calls that share the sandbox end with it and go back to the queue; they hear of ``why``.
        """
        if self.over:
            return
        self.abandoned = self.abandoned or why
        if self.seat is not None:
            self.seat.interrupt(f"was ended ({why})")

    @property
    def is_untouched(self) -> bool:
        """True when it holds a seat in a loaded sandbox and nothing of it was sent there: no reason to end that."""
        return self.seat is not None and self.seat.slot.is_bound and not self.sent

    @property
    def untold(self) -> bytes | None:
        """Progress that the record may not have yet."""
        return None if self.progress == self.progress_kept else self.progress

    def hand_back(self) -> None:
        """End it, unless it is over, and have the job returned to the queue untouched."""
        if not self.over:
            self.handed_back = True
            self.abandon("shutdown")


class Executor:
    """Runs attempts, each in the greenlet of its caller."""

    def __init__(
        self,
        runner: str,
        versions: GetVersion,
        profiles: GetProfile,
        secrets: GetSecrets,
        clock: Clock,
        rng: Random,
        on_progress: Callable[[Running], None] = lambda _: None,
        engine_answers: Callable[[], bool] = lambda: True,
    ) -> None:
        """``on_progress`` hears of each attempt that has told its progress; it must not wait. ``engine_answers`` is
        asked when a sandbox could not be started."""
        self._runner = runner
        self._versions = versions
        self._profiles = profiles
        self._secrets = secrets
        self._clock = clock
        self._rng = rng
        self._on_progress = on_progress
        self._engine_answers = engine_answers
        self._bindings = Bindings()

    def run(self, running: Running, pool: SandboxPool) -> Settlement | None:
        """The attempt from claim to settlement; None when its lease was lost meanwhile.

        The caller has reserved a place in ``pool``.
        """
        claim = running.claim
        running.started_at_ms = self._clock.now_ms()
        began = time.monotonic()
        timings: dict[str, float] = {"queued_ms": float(max(0, claim.claimed_at_ms - claim.enqueued_at_ms))}
        reply: CallReply | None = None
        error: dict[str, Any] | None = None
        try:
            try:
                version = self._versions(claim.function, claim.version)
                profile = self._profiles(pool.name, version)
                secrets = self._secrets(version)
                if secrets:
                    running.mask = Mask(secrets)
            finally:
                pool.unreserve()
            reply = self._call(running, pool, version, profile, secrets, timings)
            outcome, error = _outcome_of(reply)
        except HandlerLoadError as e:
            outcome, error = Outcome.ERROR, e.error
        except (TimeoutError, SandboxDied, ProtocolError) as e:
            outcome, error = self._sandbox_failed(running, pool, e)
        except (SandboxError, Unavailable, RequestError, DeployError) as e:
            outcome, error = self._not_started(e), _as_error(e)
        except Exception as e:  # noqa: BLE001 - one job's surprise must not end the runner and with it everybody else's jobs
            events.ATTEMPT_DEFECT(e, job=claim.id, function=claim.function)
            outcome = Outcome.CRASHED if running.sent else Outcome.START
            error = {"type": "InternalError", "message": f"{type(e).__name__}: {e}; see the log of {self._runner}"}
        finally:
            self._give_back(running, pool, reply)
        timings["total_ms"] = (time.monotonic() - began) * 1000 + timings["queued_ms"]
        if running.handed_back and reply is None:
            outcome, error = Outcome.HANDED_BACK, None
        elif running.abandoned and not running.handed_back:
            events.ATTEMPT_UNREPORTED(job=claim.id, token=claim.token, reason=running.abandoned)
            return None
        error = running.mask.error(error)
        if error is not None:
            _tell(claim, outcome, error)
        return self._settlement(running, outcome, error, reply, timings)

    def _call(
        self,
        running: Running,
        pool: SandboxPool,
        version: Version,
        profile: SandboxProfile,
        secrets: dict[str, Secret],
        timings: dict[str, float],
    ) -> CallReply:
        if running.abandoned:
            raise SandboxDied("abandoned")
        claim, spec = running.claim, version.spec
        binding, reuse = self._bindings.of(version, secrets)
        seat = running.seat = pool.acquire(profile, binding, reuse)
        timings["wait_sandbox_ms"] = seat.wait_ms
        if running.abandoned or seat.sandbox is None:
            raise SandboxDied("abandoned")
        pool.bind(seat, binding, spec.init_timeout_ms / 1000, running.logs)
        timings["init_ms"] = seat.init_ms
        timeout_s = claim.timeout_ms / 1000
        call = Invocation(
            call_id=seat.nth_use,
            job_id=claim.id,
            attempt=claim.failures + 1,
            payload=claim.payload,
            timeout_s=timeout_s,
            traceparent=claim.traceparent,
            token=claim.token,
        )

        def told(progress: bytes) -> None:
            running.progress = running.mask.json(progress)
            self._on_progress(running)

        sent = time.monotonic()
        running.sent = True
        try:
            return seat.sandbox.invoke(call, running.logs, told)
        except TimeoutError as e:
            raise TimeoutError(f"the attempt took longer than its timeout ({claim.timeout_ms} ms)") from e
        finally:
            timings["run_ms"] = (time.monotonic() - sent) * 1000

    def _not_started(self, cause: BananasError) -> Outcome:
        """It is the job's affair only while the engine is there and the GPUs are free; else the job waits for them."""
        may_be_engine = isinstance(cause, SandboxError | EngineUnavailable)
        if isinstance(cause, GpusTaken) or (may_be_engine and not self._engine_answers()):
            return Outcome.HELD_UP
        return Outcome.START

    def _sandbox_failed(self, running: Running, pool: SandboxPool, cause: Exception) -> tuple[Outcome, dict[str, Any]]:
        """The sandbox must go, and everything in it is dead before this is reported."""
        info, seat = ExitInfo(), running.seat
        if seat is not None and not running.is_untouched:
            why = EndReason.ABANDONED if running.abandoned else of_failure(cause)
            info = pool.destroy(seat, why, running.logs)
        if isinstance(cause, TimeoutError):
            return Outcome.TIMEOUT, {"type": "Timeout", "message": str(cause)}
        if seat is not None and seat.victim_of:
            return _displaced(running.claim, seat)
        others = ""
        if seat is not None and seat.slot.is_bound and seat.slot.ended_calls > 1:
            others = f"; {seat.slot.ended_calls} calls ran in the sandbox, and any of them may be the cause"
        if info.oom:
            limit = f"{pool.spec.memory_mb} MiB (pool {pool.name!r})"
            return Outcome.OOM, {
                "type": "OutOfMemory",
                "message": f"the function used more memory than its limit of {limit}{others}",
            }
        if isinstance(cause, ProtocolError):
            return Outcome.CRASHED, {"type": "ProtocolViolation", "message": f"{cause}{others}"}
        message = f"the function's process {info.describe()} before it answered{others}"
        return Outcome.CRASHED, {"type": "Crashed", "message": message}

    def _give_back(self, running: Running, pool: SandboxPool, reply: CallReply | None) -> None:
        running.over = True
        if running.seat is None:
            return
        is_reusable = running.is_untouched or (reply is not None and reply.reusable and not running.abandoned)
        if running.abandoned:
            why_not = EndReason.ABANDONED
        elif reply is not None:
            why_not = EndReason.LEFTOVERS
            if reply.why_not:
                events.SANDBOX_NOT_REUSED(sandbox=running.seat.slot.id, why=reply.why_not)
        else:
            why_not = EndReason.FAILED if running.sent else EndReason.FAILED_LOAD
        pool.release(running.seat, reusable=is_reusable, why_not=why_not)

    def _settlement(
        self,
        running: Running,
        outcome: Outcome,
        error: dict[str, Any] | None,
        reply: CallReply | None,
        timings: dict[str, float],
    ) -> Settlement:
        claim, seat, logs = running.claim, running.seat, running.mask.text(running.logs.text())
        retry_after = (error or {}).get("retry_after_s")
        decision = retry.decide(
            outcome, claim.retries, claim.failures, claim.starts, self._rng, retry_after_s=retry_after
        )
        attempt = Attempt(
            token=claim.token,
            outcome=outcome,
            runner=self._runner,
            started_at_ms=running.started_at_ms,
            start=seat.start if seat else None,
            start_reason=(seat.reason or None) if seat else None,
            sandbox=seat.sandbox.id if seat and seat.sandbox else None,
            nth_use=seat.nth_use if seat else 0,
            timings={name: round(value, 3) for name, value in timings.items()},
            error=error,
            log_bytes=len(logs),
            log_truncated=running.logs.truncated,
        )
        result = reply.result if reply is not None and outcome is Outcome.OK else None
        return Settlement(claim, attempt, decision, result or b"", logs, running.untold or b"")


def _tell(claim: Claim, outcome: Outcome, error: dict[str, Any]) -> None:
    """What the function itself raised may quote its arguments, and is in the record anyway."""
    facts = {
        "job": claim.id,
        "token": claim.token,
        "function": claim.function,
        "pool": claim.pool,
        "outcome": outcome.value,
        "error": error["type"],
        "detail": error["message"],
    }
    if outcome not in (Outcome.ERROR, Outcome.PERMANENT):
        events.ATTEMPT_BROKE(**facts)
    elif events.ATTEMPT_FAILED.is_told:
        lines = str(error.get("traceback", "")).strip().split("\n")[-3:-1]
        events.ATTEMPT_FAILED(**facts, where=" | ".join(line.strip() for line in lines))


def _outcome_of(reply: CallReply) -> tuple[Outcome, dict[str, Any] | None]:
    if reply.error is None:
        return Outcome.OK, None
    return (Outcome.PERMANENT if reply.error.get("permanent") else Outcome.ERROR), reply.error


def _displaced(claim: Claim, seat: Seat) -> tuple[Outcome, dict[str, Any]]:
    """Not its own fault, so nothing is used up; but who is unlucky again and again pays for it like for a crash."""
    message = f"another call in the same sandbox {seat.victim_of}, which ended every call in it"
    if claim.starts < LIMITS.max_starts:
        return Outcome.DISPLACED, {"type": "Displaced", "message": message}
    message += f"; this was so too often ({claim.starts + 1} times), so it counts as a crash"
    return Outcome.CRASHED, {"type": "Displaced", "message": message}


def _as_error(e: BananasError) -> dict[str, Any]:
    return {"type": type(e).__name__, "message": str(e)}
