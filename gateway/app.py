"""The Flask app: wiring only. ``from_env`` makes what a gateway process needs, ``create_app`` puts it together."""

from __future__ import annotations

from flask import Flask, Response

from bananas.errors import RedisUnavailable, UnknownFunction
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import Settings
from gateway import auth, guard, hints, listen, problems, requestid
from gateway.callbacks import CallbackRoutes
from gateway.follow import Followers
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


def create_app(settings: Settings, parts: Parts) -> Flask:
    """All routes over the given parts; nothing global, so several apps can live in one process."""
    app = Flask("gateway", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # no other site's page is granted anything
    app.url_map.converters["job"] = JobPart
    app.url_map.merge_slashes = False  # no call is at a path with two, and a redirect would be one more answer
    queue, registry, waiters = parts.queue, parts.registry, parts.waiters
    # gunicorn's worker lets the waiters go when it stops, and the last counts are told.
    app.extensions["bananas.waiters"] = waiters
    app.extensions["bananas.traffic"] = parts.traffic
    parts.traffic.register(app)
    if listen.is_loopback(settings.host) or settings.hosts:
        app.before_request(guard.host_check(settings.hosts))
    if listen.needs_tokens(settings):
        app.before_request(auth.check(parts.tokens))
    requestid.register(app)
    problems.register(app)
    app.register_error_handler(UnknownFunction, lambda error: _with_hint(error, registry))
    live = LiveRunners(registry)
    scraper = Scraper(queue, registry, parts.health, parts.counters, parts.traffic)
    invoker = Invoker(queue, registry, waiters, live)
    callbacks = CallbackRoutes(parts.secrets, settings.callback_allow)
    for routes in (
        JobRoutes(queue, parts.lists, registry, waiters, live, Followers(queue, parts.follow, waiters), callbacks),
        callbacks,
        DeadRoutes(parts.dead, queue, registry),
        FunctionRoutes(queue, registry, invoker),
        RawRoutes(invoker, listen.needs_tokens(settings)),
        AwsRoutes(queue, registry, invoker, listen.needs_tokens(settings)),
        OperateRoutes(queue, registry, parts.health, scraper),
        SecretRoutes(parts.secrets, registry),
        ScheduleRoutes(parts.schedules),
        TokenRoutes(parts.tokens),
        OpenApiRoutes(),
    ):
        app.register_blueprint(routes.blueprint())
    return app


def _with_hint(error: UnknownFunction, registry: Registry) -> Response:
    """The problem of an unknown function, with the nearest name that is known."""
    try:
        detail, facts = hints.unknown_function(error, registry.names())
    except RedisUnavailable as e:
        return problems.of_error(e)
    return problems.problem(error.code, detail, **facts)
