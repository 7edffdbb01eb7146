"""The second argument of a handler."""

from __future__ import annotations

import time


class Context:
    """Facts about the call that runs, for ``def handle(event, context)``."""

    __slots__ = ("_deadline_s", "attempt", "function", "job_id", "traceparent", "version")

    def __init__(
        self,
        function: str,
        version: str,
        job_id: str,
        attempt: int,
        timeout_s: float,
        traceparent: str | None = None,
    ) -> None:
        self.function = function
        self.version = version
        #: The same for every attempt of one job: use it to make side effects idempotent.
        self.job_id = job_id
        #: Which attempt this is; it only ever grows for one job.
        self.attempt = attempt
        #: W3C trace context that the job was submitted with, None without one.
        self.traceparent = traceparent
        self._deadline_s = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Seconds until the sandbox is killed for being too slow; not below 0."""
        return max(0.0, self._deadline_s - time.monotonic())

    def __repr__(self) -> str:
        return f"<Context of {self.function}@{self.version}, job {self.job_id}, attempt {self.attempt}>"
