"""The Flask app: wiring only. ``from_env`` makes what a gateway process needs, ``create_app`` puts it together."""

from __future__ import annotations

from flask import Flask, Response

from bananas.dead_letters import DeadLetters
from bananas.errors import RedisUnavailable, UnknownFunction
from bananas.health import Health
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.schedules import Schedules
from bananas.secrets import SecretBox, Secrets
from bananas.settings import Settings
from gateway import guard, hints, listen, problems
from gateway.invoke import Invoker
from gateway.live import LiveRunners
from gateway.routes.dead import DeadRoutes
from gateway.routes.functions import FunctionRoutes
from gateway.routes.jobs import JobRoutes
from gateway.routes.operate import OperateRoutes
from gateway.routes.schedules import ScheduleRoutes
from gateway.routes.secrets import SecretRoutes
from gateway.wait import Waiters


def from_env() -> Flask:
    """The app of one gateway process, after the fork. Raises ConfigError."""
    settings = Settings.from_env()
    connections = Connections(settings.require_redis_url())
    queue = Queue(connections)
    secrets = Secrets(connections, SecretBox.from_settings(settings))
    dead, schedules = DeadLetters(connections), Schedules(connections)
    parts = (queue, Registry(connections), Waiters(queue), Health(connections), secrets, dead, schedules)
    return create_app(settings, *parts)


def create_app(
    settings: Settings,
    queue: Queue,
    registry: Registry,
    waiters: Waiters,
    health: Health,
    secrets: Secrets,
    dead: DeadLetters,
    schedules: Schedules,
) -> Flask:
    """All routes over the given parts; nothing global, so several apps can live in one process."""
    app = Flask("gateway", static_folder=None)
    # gunicorn's worker lets the waiters go when it stops.
    app.extensions["bananas.waiters"] = waiters
    if listen.is_loopback(settings.host) or settings.hosts:
        app.before_request(guard.host_check(settings.hosts))
    problems.register(app)
    app.register_error_handler(UnknownFunction, lambda error: _with_hint(error, registry))
    live = LiveRunners(registry)
    app.register_blueprint(JobRoutes(queue, registry, waiters, live).blueprint())
    app.register_blueprint(DeadRoutes(dead, queue, registry).blueprint())
    app.register_blueprint(FunctionRoutes(queue, registry, Invoker(queue, registry, waiters, live)).blueprint())
    app.register_blueprint(OperateRoutes(queue, registry, health).blueprint())
    app.register_blueprint(SecretRoutes(secrets, registry).blueprint())
    app.register_blueprint(ScheduleRoutes(schedules).blueprint())
    return app


def _with_hint(error: UnknownFunction, registry: Registry) -> Response:
    """The problem of an unknown function, with the nearest name that is known."""
    try:
        detail, facts = hints.unknown_function(error, registry.names())
    except RedisUnavailable as e:
        return problems.of_error(e)
    return problems.problem(error.code, detail, **facts)
