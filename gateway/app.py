"""The Flask app: wiring only. ``from_env`` makes what a gateway process needs, ``create_app`` puts it together."""

from __future__ import annotations

import difflib

from flask import Flask, Response

from bananas.errors import RedisUnavailable, UnknownFunction
from bananas.health import Health
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.secrets import SecretBox, Secrets
from bananas.settings import Settings
from gateway import guard, listen, problems
from gateway.invoke import Invoker
from gateway.routes.functions import FunctionRoutes
from gateway.routes.jobs import JobRoutes
from gateway.routes.operate import OperateRoutes
from gateway.routes.secrets import SecretRoutes
from gateway.wait import Waiters


def from_env() -> Flask:
    """The app of one gateway process, after the fork. Raises ConfigError."""
    settings = Settings.from_env()
    connections = Connections(settings.require_redis_url())
    queue = Queue(connections)
    secrets = Secrets(connections, SecretBox.from_settings(settings))
    return create_app(settings, queue, Registry(connections), Waiters(queue), Health(connections), secrets)


def create_app(
    settings: Settings, queue: Queue, registry: Registry, waiters: Waiters, health: Health, secrets: Secrets
) -> Flask:
    """All routes over the given parts; nothing global, so several apps can live in one process."""
    app = Flask("gateway", static_folder=None)
    # gunicorn's worker lets the waiters go when it stops.
    app.extensions["bananas.waiters"] = waiters
    if listen.is_loopback(settings.host) or settings.hosts:
        app.before_request(guard.host_check(settings.hosts))
    problems.register(app)
    app.register_error_handler(UnknownFunction, lambda error: _with_hint(error, registry))
    app.register_blueprint(JobRoutes(queue, waiters).blueprint())
    app.register_blueprint(FunctionRoutes(registry, Invoker(queue, registry, waiters)).blueprint())
    app.register_blueprint(OperateRoutes(queue, registry, health).blueprint())
    app.register_blueprint(SecretRoutes(secrets, registry).blueprint())
    return app


def _with_hint(error: UnknownFunction, registry: Registry) -> Response:
    """The problem of an unknown function, with the nearest name that is known."""
    wanted = str(error.details.get("function", ""))
    try:
        names = registry.names()
    except RedisUnavailable as e:
        return problems.of_error(e)
    close = difflib.get_close_matches(wanted, names, n=1)
    if close:
        hint = f"; did you mean {close[0]!r}?"
    elif names:
        hint = f"; deployed are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
    else:
        hint = "; none is: run `bananas deploy` first"
    return problems.problem(error.code, f"{error}{hint}", function=wanted, did_you_mean=close[0] if close else None)
