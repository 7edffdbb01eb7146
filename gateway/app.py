"""The Flask app: wiring only. ``from_env`` makes what a gateway process needs, ``create_app`` puts it together."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, request

from bananas.redis_client import Connections
from bananas.settings import Settings
from gateway import asked, auth, guard, listen
from gateway.answers import Answer
from gateway.callbacks import CallbackRoutes
from gateway.direct import Direct
from gateway.follow import Followers
from gateway.front import Check, Front
from gateway.invoke import Invoker
from gateway.live import LiveRunners
from gateway.metrics import Scraper
from gateway.parts import Parts
from gateway.routes.aws import AwsRoutes
from gateway.routes.dead import DeadRoutes
from gateway.routes.functions import FunctionRoutes
from gateway.routes.jobs import JobPart, JobRoutes
from gateway.routes.openapi import OpenApiRoutes
from gateway.routes.operate import OperateRoutes
from gateway.routes.raw import RawRoutes
from gateway.routes.schedules import ScheduleRoutes
from gateway.routes.secrets import SecretRoutes
from gateway.routes.tokens import TokenRoutes


def from_env() -> Flask:
    """The app of one gateway process, after the fork. Raises ConfigError."""
    settings = Settings.from_env()
    parts = Parts.of(settings, Connections(settings.require_redis_url()))
    app = create_app(settings, parts)
    parts.traffic.start()
    return app


class Gateway(Flask):
    """Flask, whose views may also answer with an ``Answer``."""

    def make_response(self, rv: Any) -> Response:
        """Called by Flask with what a view or an error handler returned."""
        if not isinstance(rv, Answer):
            return super().make_response(rv)
        response = Response(rv.body, rv.status, rv.headers, content_type=rv.media or None)
        if not rv.media and not any(name.lower() == "content-type" for name, _ in rv.headers):
            del response.headers["Content-Type"]  # Flask would have it that the body is HTML
        return response


def create_app(settings: Settings, parts: Parts) -> Flask:
    """All routes over the given parts; nothing global, so several apps can live in one process."""
    app = Gateway("gateway", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # no other site's page is granted anything
    app.url_map.converters["job"] = JobPart
    app.url_map.merge_slashes = False  # no call is at a path with two, and a redirect would be one more answer
    queue, registry, waiters = parts.queue, parts.registry, parts.waiters
    # gunicorn's worker lets the waiters go when it stops, and the last counts are told.
    app.extensions["bananas.waiters"] = waiters
    app.extensions["bananas.traffic"] = parts.traffic
    front = Front(_checks(settings, parts), parts.traffic, registry.names)
    _surround(app, front)
    live = LiveRunners(registry)
    scraper = Scraper(queue, registry, parts.health, parts.counters, parts.traffic)
    invoker = Invoker(queue, registry, waiters, live)
    callbacks = CallbackRoutes(parts.secrets, settings.callback_allow)
    followers = Followers(queue, parts.follow, waiters)
    jobs = JobRoutes(queue, parts.lists, registry, waiters, live, followers, callbacks)
    functions = FunctionRoutes(queue, registry, invoker)
    for routes in (
        jobs,
        callbacks,
        DeadRoutes(parts.dead, queue, registry),
        functions,
        RawRoutes(invoker, listen.needs_tokens(settings)),
        AwsRoutes(queue, registry, invoker, listen.needs_tokens(settings)),
        OperateRoutes(queue, registry, parts.health, scraper),
        SecretRoutes(parts.secrets, registry),
        ScheduleRoutes(parts.schedules),
        TokenRoutes(parts.tokens),
        OpenApiRoutes(),
    ):
        app.register_blueprint(routes.blueprint())
    calls = {"/jobs": ("jobs.submit", jobs.submit), "/jobs/batch": ("jobs.submit_many", jobs.submit_many)}
    app.wsgi_app = Direct(front, calls, functions.invoke, app.wsgi_app)  # type: ignore[method-assign]
    return app


def _checks(settings: Settings, parts: Parts) -> list[Check]:
    """What is looked at before every call."""
    checks = []
    if listen.is_loopback(settings.host) or settings.hosts:
        checks.append(guard.host_check(settings.hosts))
    if listen.needs_tokens(settings):
        checks.append(auth.check(parts.tokens))
    return checks


def _surround(app: Flask, front: Front) -> None:
    """The same around each of Flask's calls as around those that take the direct way."""

    def before() -> None:
        one = asked.current()
        one.endpoint, one.args = request.endpoint, request.view_args or {}
        front.check(one)

    def after(response: Response) -> Response:
        one = asked.current()
        response.headers[asked.ID_HEADER] = front.finish(one, response.status_code, response.mimetype or "")
        return response

    app.before_request(before)
    app.after_request(after)
    app.register_error_handler(Exception, front.problem)
