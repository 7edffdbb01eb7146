"""``/fn/{name}/{path}``: functions that are called with a whole HTTP request and may answer with one.

Any media type is taken here, also what a form of another site could send, so where no token is asked for the browser's
own word on where the request comes from is checked (``guard.check_origin``).
"""

from __future__ import annotations

from flask import Blueprint, request
from werkzeug.routing import PathConverter

from bananas.settings import LIMITS
from gateway import bodies, httpevent
from gateway.answers import Answer
from gateway.guard import ANY, check_origin, read_body, too_large
from gateway.invoke import PROBLEMS, Invoker
from gateway.problems import problem
from gateway.records import AttemptReport


class Rest(PathConverter):
    """Whatever follows, also nothing and slashes at its begin."""

    regex = ".*?"
    part_isolating = False  # it goes beyond a slash


class RawTelling:
    """The handler's answer; failures are problems."""

    def result(self, function: str, result: bytes, headers: dict[str, str]) -> Answer:
        """What the handler said, under the headers that keep it apart from the gateway."""
        try:
            said = httpevent.answer(result)
        except httpevent.BadAnswer as e:
            detail = f"{function!r} returned an HTTP answer that cannot be sent: {e}"
            return problem("bad-answer", detail, headers=headers, job=headers.get("Bananas-Job-Id"))
        return Answer(said.body, said.status, [*said.headers, *httpevent.ISOLATION.items(), *headers.items()])

    def failure(self, function: str, job_id: str, attempt: AttemptReport, headers: dict[str, str]) -> Answer:
        """As for every other call."""
        return PROBLEMS.failure(function, job_id, attempt, headers)


_TELLING = RawTelling()


class RawRoutes:
    """The calls that pass HTTP through."""

    def __init__(self, invoker: Invoker, has_tokens: bool) -> None:
        """``has_tokens``: every request shows a token, which no other site's page can."""
        self._invoker = invoker
        self._has_tokens = has_tokens

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("raw", __name__)
        routes.record_once(lambda state: state.app.url_map.converters.update(rest=Rest))
        for rule in ("/fn/<name>", "/fn/<name>/<rest:path>"):
            routes.add_url_rule(
                rule,
                endpoint="call",
                view_func=self.call,
                methods=httpevent.METHODS,
                provide_automatic_options=False,
                merge_slashes=False,
            )
        return routes

    def call(self, name: str, path: str = "") -> Answer:
        """One request, one attempt."""
        if not self._has_tokens:
            check_origin()
        body = read_body(LIMITS.payload_bytes, ANY, "body")
        event = httpevent.event(request.environ, name, f"/{path}", body)
        if len(event) > LIMITS.payload_bytes:
            raise too_large("request as an event", len(event), LIMITS.payload_bytes)
        payload = bodies.sync_payload(name, event)
        key = bodies.checked_key(request.headers.get(bodies.KEY_HEADER))
        trace = bodies.trace(request.headers.get(bodies.TRACE_HEADER))
        return self._invoker.call(name, payload, request.environ, key, traceparent=trace, telling=_TELLING)
