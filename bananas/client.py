"""The gateway's HTTP API as typed calls, for programs that use Bananas, and for the command line, deploys and tests.

Decides that a lost answer never makes a second job, and keeps no state but a connection. A problem body becomes
ApiError, and a gateway that is not there GatewayUnreachable with the next step in its message. A client belongs to one
thread at a time. docs/python-client.md shows it; paths and bodies are described in docs/http-api.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Self, Unpack, cast
from uuid import uuid4

from bananas import client_json
from bananas.client_operate import OperateCalls
from bananas.client_types import Job, JobOptions, JobPage, LogEnd, LogPiece, Moved, NewJob, Refused, Submitted
from bananas.client_wire import ANSWER_S, Patience, Wire, is_passing, part, with_query
from bananas.errors import ApiError, BananasError, GatewayUnreachable, JobFailed, JobNotOver
from bananas.settings import LIMITS

#: How long a call that did not work is sent again.
PATIENCE_S: Final = 10.0
#: What a long wait may take on top of the wait itself.
MARGIN_S: Final = 10.0
#: One request of a longer wait; less than proxies cut off.
_POLL_S: Final = 30.0
#: Of the jobs in a batch, without its brackets.
_BATCH_BYTES: Final = LIMITS.batch_bytes - 64
_OVER: Final = ("completed", "failed", "cancelled")

#: Anything that JSON can say, or its text as bytes.
Payload = Any


class Client(OperateCalls):
    """One gateway. Every method raises ApiError for a problem and GatewayUnreachable when nothing answers."""

    def __init__(self, url: str, token: str = "", *, patience_s: float = PATIENCE_S) -> None:
        """Nothing is sent yet; raises ConfigError for an ``url`` that is none.

        Args:
            url: the gateway's base address, such as ``http://127.0.0.1:8080``.
            token: for a gateway that asks for one.
            patience_s: how long a call that did not work is sent again, if that does no harm; 0: never. A gateway's
                ``Retry-After`` is kept to, and one that is longer than this ends the call.
        """
        self._wire = Wire(url, token, patience_s)
        self.url = self._wire.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._wire.close()

    def submit(self, name: str, payload: Payload = None, **options: Unpack[JobOptions]) -> Submitted:
        """Queue a job; returns once it is safe in Redis.

        A submit whose answer is lost is sent again with the same ``unique_key``, one of its own if none is given, so
        there is one job however often that happens.
        """
        job, is_ours = self._with_key({"name": name, "payload": payload, **options})
        answer = self._wire.json("POST", "/jobs", client_json.job(job), is_repeatable=True)
        return cast("Submitted", _without_our_key(answer) if is_ours else answer)

    def submit_and_wait(
        self, name: str, payload: Payload = None, *, timeout_s: float | None = None, **options: Unpack[JobOptions]
    ) -> Any:
        """Queue a job, wait for its end through all its retries, and return what the handler returned.

        Raises JobFailed when it failed or was cancelled, and JobNotOver after ``timeout_s`` (None: no such limit); the
        job then goes on, and both errors have its record as ``job``.
        """
        began_s = time.monotonic()
        job = self._wait(self.submit(name, payload, **options)["id"], timeout_s, began_s)
        if job["status"] != "completed":
            raise JobFailed(job)
        return job["result"]

    def submit_many(self, jobs: Iterable[NewJob | Mapping[str, Any]]) -> Iterator[Submitted | Refused]:
        """Queue many; each is ``{"name", "payload"?, …}`` as for ``submit``, and what comes answers it, in order.

        Nothing is sent before the first answer is asked for; then as many at a time as a batch holds. A batch is sent
        again like a single job. When that does not help, the answers before it stand, and of its own jobs, those may be
        queued or not that had no ``unique_key``.
        """
        batch: list[tuple[bytes, bool]] = []
        size = 0
        for job in jobs:
            keyed, is_ours = self._with_key(job)
            raw = client_json.job(keyed)
            if batch and (len(batch) == LIMITS.batch_items or size + len(raw) + 1 > _BATCH_BYTES):
                yield from self._batch(batch)
                batch, size = [], 0
            batch.append((raw, is_ours))
            size += len(raw) + 1
        if batch:
            yield from self._batch(batch)

    def _batch(self, jobs: list[tuple[bytes, bool]]) -> Iterator[Submitted | Refused]:
        body = b'{"jobs":[' + b",".join(raw for raw, _ in jobs) + b"]}"
        answers = self._wire.json("POST", "/jobs/batch", body, is_repeatable=True)["jobs"]
        for (_, is_ours), answer in zip(jobs, answers, strict=True):
            yield _without_our_key(answer) if is_ours else answer

    def _with_key(self, job: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
        """The job with a unique key, and whether that is ours; without patience nothing is sent twice, so none."""
        if self._wire.patience_s <= 0 or job.get("unique_key") is not None:
            return job, False
        return {**job, "unique_key": f"client-{uuid4().hex}"}, True

    def job(self, job_id: str, wait_s: float | None = None) -> Job:
        """The job's record; with ``wait_s`` (at most 60) as soon as the job is over, or after that many seconds."""
        query = "" if wait_s is None else f"?wait={wait_s:g}"
        path = f"/jobs/{part(job_id)}{query}"
        return cast("Job", self._wire.json("GET", path, timeout_s=ANSWER_S + (wait_s or 0)))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job's record as soon as it is over, however it ended; raises JobNotOver after ``timeout_s``."""
        return self._wait(job_id, timeout_s, time.monotonic())

    def _wait(self, job_id: str, timeout_s: float | None, began_s: float) -> Job:
        while True:
            left_s = _POLL_S if timeout_s is None else began_s + timeout_s - time.monotonic()
            job = self.job(job_id, wait_s=min(left_s, _POLL_S) if left_s > 0 else None)
            if job["status"] in _OVER:
                return job
            if left_s <= 0:
                raise JobNotOver(job, timeout_s or 0)

    def jobs(self, **query: Any) -> JobPage:
        """One page of jobs, newest first.

        ``query``: status, function, cursor, limit; None counts as not given.
        """
        return cast("JobPage", self._wire.json("GET", with_query("/jobs", query)))

    def cancel(self, job_id: str) -> Moved:
        """Cancel the job; also when it is cancelled already."""
        return cast("Moved", self._wire.json("DELETE", f"/jobs/{part(job_id)}"))

    def payload(self, job_id: str) -> bytes:
        """What the job is called with: JSON text as it was sent."""
        return self._wire.call("GET", f"/jobs/{part(job_id)}/payload")

    def logs(self, job_id: str) -> str:
        """What every attempt printed, oldest first."""
        return self._wire.call("GET", f"/jobs/{part(job_id)}/logs").decode(errors="replace")

    def follow_logs(self, job_id: str) -> Iterator[LogPiece | LogEnd]:
        """What the job prints, as it prints it, from its first attempt on; at last how it ended.

        When the gateway goes in between, the job is followed again for the client's patience, and nothing is told
        twice; after that GatewayUnreachable.
        """
        told: dict[int, int] = {}
        patience = Patience(self._wire.patience_s)
        while True:
            began_s = time.monotonic()
            try:
                for event in self._follow(job_id, told):
                    yield event
                    if event["event"] == "end":
                        return
                error: BananasError = GatewayUnreachable(f"{self.url} ended before job {job_id} did; follow it again")
            except (GatewayUnreachable, ApiError) as e:
                error = e
            if time.monotonic() - began_s > self._wire.patience_s:
                patience = Patience(self._wire.patience_s)  # it was there for long enough to be another outage
            if not is_passing(error) or not patience.wait(getattr(error, "retry_after_s", None)):
                raise error

    def _follow(self, job_id: str, told: dict[int, int]) -> Iterator[LogPiece | LogEnd]:
        """One stream, which tells everything again. ``told``: attempt → characters of it that the caller has."""
        skip = dict(told)
        for event in self._wire.events(f"/jobs/{part(job_id)}/logs?follow=1"):
            if event["event"] == "error":
                raise ApiError(503, event)
            if event["event"] == "end":
                yield cast("LogEnd", event)
                return
            if piece := _new_part(event, skip, told):
                yield piece

    def invoke(
        self, name: str, payload: Payload = None, *, timeout_s: float | None = None, unique_key: str | None = None
    ) -> bytes:
        """Call the function and wait; returns the result's JSON text.

        A second call with the same ``unique_key`` gets the result of the first one. Without a key it is sent again only
        when it certainly did not begin.

        The gateway ends the call when the function's own timeout is over. ``timeout_s`` is when this side gives up;
        None asks the gateway for the function's timeout first and waits a little longer than that.
        """
        if timeout_s is None:
            limits = self.function(name)["spec"]
            run_ms = int(limits.get("timeout_ms", 0)) + int(limits.get("init_timeout_ms", 0))
            timeout_s = run_ms / 1000 + LIMITS.sync_queue_s + MARGIN_S
        return self._wire.call(
            *("POST", f"/functions/{part(name)}/invoke", client_json.encode(payload)),
            timeout_s=timeout_s,
            headers={} if unique_key is None else {"Idempotency-Key": unique_key},
            is_repeatable=unique_key is not None,
        )


def _without_our_key(answer: dict[str, Any]) -> Any:
    """An answer about a job with a key that nobody else has: what it is a duplicate of is itself."""
    return {**answer, "duplicate": False} if "duplicate" in answer else answer


def _new_part(event: dict[str, Any], skip: dict[int, int], told: dict[int, int]) -> LogPiece | None:
    """What was not told yet of a piece, when a stream began anew. ``skip``: characters left of each attempt to leave
    out; ``told``: those that were told, which this adds to."""
    attempt, text = event["attempt"], event["text"]
    known = min(skip.get(attempt, 0), len(text))
    if known:
        skip[attempt] -= known
        text = text[known:]
    if not text:
        return None
    told[attempt] = told.get(attempt, 0) + len(text)
    return {"event": "log", "attempt": attempt, "text": text}
