"""``/jobs``: submit one or many, list, look, wait, cancel, read payload and logs."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.routing import BaseConverter

from bananas.errors import InvalidRequest, JobFinished, UnknownJob
from bananas.job import Enqueued, JobState, NewJob
from bananas.listing import JobLists, Question
from bananas.queue import Queue
from bananas.registry import Registry
from bananas.settings import LIMITS
from gateway import auth, batch, bodies, hangup, lists, records
from gateway.answers import JSON, Answer, json_answer
from gateway.asked import current
from gateway.callbacks import CallbackRoutes
from gateway.follow import Followers
from gateway.forms import only
from gateway.guard import read_body
from gateway.live import LiveRunners
from gateway.wait import Waiters

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: nginx's status for a client that did not wait; nobody reads it.
_CLIENT_CLOSED = 499


class JobPart(BaseConverter):
    """A job's id in a path: anything but the name of a call beside it."""

    regex = r"(?!batch\Z)[^/]+"
    part_isolating = True


class JobRoutes:
    """The calls on jobs."""

    def __init__(
        self,
        queue: Queue,
        lists: JobLists,
        registry: Registry,
        waiters: Waiters,
        live: LiveRunners,
        followers: Followers,
        callbacks: CallbackRoutes,
    ) -> None:
        self._callbacks = callbacks
        self._followers = followers
        self._queue = queue
        self._lists = lists
        self._registry = registry
        self._waiters = waiters
        self._live = live

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("jobs", __name__)
        routes.add_url_rule("/jobs", view_func=self.page, methods=["GET"])
        routes.add_url_rule("/jobs", view_func=self.submit, methods=["POST"])
        routes.add_url_rule("/jobs/batch", view_func=self.submit_many, methods=["POST"])
        routes.add_url_rule("/jobs/<job:job_id>", view_func=self.show, methods=["GET"])
        routes.add_url_rule("/jobs/<job:job_id>", view_func=self.cancel, methods=["DELETE"])
        routes.add_url_rule("/jobs/<job:job_id>/payload", view_func=self.payload, methods=["GET"])
        routes.add_url_rule("/jobs/<job:job_id>/logs", view_func=self.logs, methods=["GET"])
        return routes

    def page(self) -> Answer:
        """Jobs that match, newest first; of a token's own functions only."""
        query = lists.query(request.args)
        auth.require_function(query.function)
        wanted = Question(query.status, query.function, auth.covers)
        found = self._lists.page(wanted, query.cursor, query.limit)
        return json_answer({"jobs": [lists.public(job) for job in found.jobs], "cursor": found.cursor})

    def submit(self) -> Answer:
        """202 once the job is in Redis; 200 when an earlier one with its unique key is."""
        raw = read_body(LIMITS.payload_bytes + bodies.ENVELOPE_BYTES, what="job with its payload")
        asked = current()
        trace = bodies.trace(asked.header(bodies.TRACE_HEADER))
        job = self._accepted(bodies.new_job(raw, asked.header(bodies.KEY_HEADER), trace))
        queued = self._queue.enqueue(job)
        location = {"Location": f"/jobs/{queued.id}"}
        return json_answer(_public(job, queued), 200 if queued.duplicate else 202, location)

    def _accepted(self, job: NewJob) -> NewJob:
        """The job, if this request may submit it."""
        auth.require_function(job.function)
        self._callbacks.check(job.callback_url)
        return auth.metered(job)

    def submit_many(self) -> Answer:
        """One answer for each job: 202 when all were taken, else 207."""
        asked = current()
        if asked.header(bodies.KEY_HEADER) is not None:
            raise InvalidRequest(f"{bodies.KEY_HEADER} cannot stand for a batch; give each of its jobs a unique_key")
        trace = bodies.trace(asked.header(bodies.TRACE_HEADER))
        items = batch.items(read_body(LIMITS.batch_bytes, what="batch"), self._accepted, trace)
        body, status = batch.answer(batch.submit(self._queue, items), _public, self._registry.names)
        return json_answer(body, status)

    def show(self, job_id: str) -> Answer:
        """The record; with ``?wait=`` once the job is over or the time is."""
        only(request.args, "wait")
        self._check(job_id)
        seconds = bodies.wait_s(request.args.get("wait"))
        if seconds:
            try:
                self._await(job_id, seconds)
            except hangup.ClientGone:
                return Answer(b"", _CLIENT_CLOSED)
        record = self._queue.show(job_id)
        logs = self._queue.logs_of(record) if records.has_logs(record) else {}
        return json_answer(records.public(record, logs, self._live.hold_up(record)))

    def _check(self, job_id: str) -> None:
        check_id(job_id)
        if auth.is_bound():
            auth.require_function(self._queue.show(job_id).function)

    def _await(self, job_id: str, seconds: float) -> None:
        with (
            self._waiters.expect(job_id, patient=False) as waiter,
            hangup.watched(request.environ, waiter.abandon),
        ):
            waiter.ask()
            waiter.wait(seconds)

    def cancel(self, job_id: str) -> Answer:
        """Cancel it wherever it is; one that is cancelled already stays so, as for a client that asks again."""
        self._check(job_id)
        try:
            self._queue.cancel(job_id)
        except JobFinished as e:
            if e.details["status"] != JobState.CANCELLED.value:
                raise
        return json_answer({"id": job_id, "status": "cancelled"})

    def payload(self, job_id: str) -> Answer:
        """What it is called with, as it was sent."""
        self._check(job_id)
        return Answer(self._queue.payload(job_id), media=JSON)

    def logs(self, job_id: str) -> Answer | Response:
        """Everything that every attempt printed, oldest first; with ``?follow=1`` as events until the job is over."""
        only(request.args, "follow")
        self._check(job_id)
        if bodies.flag("follow", request.args.get("follow")):
            self._queue.show(job_id)  # a problem is told before the answer begins
            events = self._followers.events(job_id, request.environ)
            return Response(events, content_type="text/event-stream", headers={"Cache-Control": "no-store"})
        texts = self._queue.logs(job_id).values()
        text = b"".join(part if part.endswith(b"\n") else part + b"\n" for part in texts)
        return Answer(text, headers=[("X-Content-Type-Options", "nosniff")], media="text/plain; charset=utf-8")


def _public(job: NewJob, queued: Enqueued) -> dict[str, Any]:
    return {
        "id": queued.id,
        "status": queued.state.value,
        "name": job.function,
        "version": queued.version,
        "pool": queued.pool,
        "duplicate": queued.duplicate,
    }


def check_id(job_id: str) -> None:
    """Raises UnknownJob for what cannot be an id."""
    if not _ID.fullmatch(job_id):
        raise UnknownJob(f"{job_id[:60]!r} is not the id of a job")
