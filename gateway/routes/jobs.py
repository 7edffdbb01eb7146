"""``/jobs``: submit, look, wait, cancel, read logs."""

from __future__ import annotations

import re

from flask import Blueprint, Response, request

from bananas.errors import UnknownJob
from bananas.queue import Queue
from bananas.settings import LIMITS
from gateway import bodies, hangup, records
from gateway.answers import json_answer
from gateway.guard import read_body
from gateway.wait import Waiters

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: nginx's status for a client that did not wait; nobody reads it.
_CLIENT_CLOSED = 499


class JobRoutes:
    """The calls on jobs."""

    def __init__(self, queue: Queue, waiters: Waiters) -> None:
        self._queue = queue
        self._waiters = waiters

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("jobs", __name__)
        routes.add_url_rule("/jobs", view_func=self.submit, methods=["POST"])
        routes.add_url_rule("/jobs/<job_id>", view_func=self.show, methods=["GET"])
        routes.add_url_rule("/jobs/<job_id>", view_func=self.cancel, methods=["DELETE"])
        routes.add_url_rule("/jobs/<job_id>/logs", view_func=self.logs, methods=["GET"])
        return routes

    def submit(self) -> Response:
        """202 once the job is in Redis."""
        job = bodies.new_job(read_body(LIMITS.payload_bytes + bodies.ENVELOPE_BYTES, what="job with its payload"))
        queued = self._queue.enqueue(job)
        return json_answer(
            {
                "id": queued.id,
                "status": queued.state.value,
                "name": job.function,
                "version": queued.version,
                "pool": queued.pool,
            },
            202,
            {"Location": f"/jobs/{queued.id}"},
        )

    def show(self, job_id: str) -> Response:
        """The record; with ``?wait=`` once the job is over or the time is."""
        _check_id(job_id)
        seconds = bodies.wait_s(request.args.get("wait"))
        if seconds:
            try:
                self._await(job_id, seconds)
            except hangup.ClientGone:
                return Response(status=_CLIENT_CLOSED)
        record = self._queue.show(job_id)
        logs = self._queue.logs(job_id) if records.has_logs(record) else {}
        return json_answer(records.public(record, logs))

    def _await(self, job_id: str, seconds: float) -> None:
        with (
            self._waiters.expect(job_id, patient=False) as waiter,
            hangup.watched(request.environ, waiter.abandon),
        ):
            waiter.ask()
            waiter.wait(seconds)

    def cancel(self, job_id: str) -> Response:
        """Cancel it wherever it is."""
        _check_id(job_id)
        self._queue.cancel(job_id)
        return json_answer({"id": job_id, "status": "cancelled"})

    def logs(self, job_id: str) -> Response:
        """Everything that every attempt printed, oldest first."""
        _check_id(job_id)
        texts = self._queue.logs(job_id).values()
        text = b"".join(part if part.endswith(b"\n") else part + b"\n" for part in texts)
        return Response(text, content_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


def _check_id(job_id: str) -> None:
    if not _ID.fullmatch(job_id):
        raise UnknownJob(f"{job_id[:60]!r} is not the id of a job")
