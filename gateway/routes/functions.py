"""``/functions`` and ``/bundles``: deploy, look, remove, call."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request

from bananas.errors import UnknownFunction
from bananas.queue import Activity, Queue
from bananas.registry import Registry
from bananas.settings import LIMITS
from bananas.spec import Deployment, Version
from gateway import auth, bodies, versions
from gateway.answers import Answer, empty_answer, iso, json_answer
from gateway.asked import current
from gateway.forms import only
from gateway.guard import OCTETS, read_body
from gateway.invoke import Invoker

#: A spec is short, apart from its ``env``.
_DEPLOYMENT_BYTES = 256 * 1024
_ROLLBACK_BYTES = 16 * 1024


class FunctionRoutes:
    """The calls on functions and the archives they are made of."""

    def __init__(self, queue: Queue, registry: Registry, invoker: Invoker) -> None:
        self._queue = queue
        self._registry = registry
        self._invoker = invoker

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("functions", __name__)
        routes.add_url_rule("/functions", view_func=self.list, methods=["GET"])
        routes.add_url_rule("/functions/<name>", view_func=self.show, methods=["GET"])
        routes.add_url_rule("/functions/<name>", view_func=self.deploy, methods=["PUT"])
        routes.add_url_rule("/functions/<name>", view_func=self.remove, methods=["DELETE"])
        routes.add_url_rule("/functions/<name>/versions", view_func=self.versions, methods=["GET"])
        routes.add_url_rule("/functions/<name>/rollback", view_func=self.rollback, methods=["POST"])
        routes.add_url_rule("/functions/<name>/invoke", view_func=self.invoke, methods=["POST"])
        routes.add_url_rule("/bundles/<sha256>", view_func=self.has_bundle, methods=["GET"])  # Flask adds HEAD
        routes.add_url_rule("/bundles/<sha256>", view_func=self.put_bundle, methods=["PUT"])
        return routes

    def list(self) -> Answer:
        """The current version of every function, and what each does."""
        found = [version for version in self._registry.versions() if auth.covers(version.function)]
        activity = self._queue.activity([version.function for version in found])
        return json_answer({"functions": [_public(version, activity[version.function]) for version in found]})

    def show(self, name: str) -> Answer:
        """The current version of one."""
        version = self._registry.current(name)
        return json_answer(_public(version, self._queue.activity([name])[name]))

    def deploy(self, name: str) -> Answer:
        """Make a version the current one."""
        bodies.checked_name(name, "function")
        deployment = Deployment.decode(read_body(_DEPLOYMENT_BYTES, what="deployment"))
        version, changed = self._registry.deploy(name, deployment)
        return json_answer({"name": name, "version": version.version, "changed": changed})

    def remove(self, name: str) -> Answer:
        """Take it away; queued jobs still run."""
        if not self._registry.remove(name):
            raise UnknownFunction(f"no function {name[:60]!r} is deployed", function=name[:60])
        return empty_answer()

    def versions(self, name: str) -> Answer:
        """The kept versions, deployed last first; with ``?diff=a..b`` also what differs between two."""
        only(request.args, "diff")
        current, kept = self._registry.current(name).version, self._registry.history(name)
        text = request.args.get("diff")
        difference = versions.diff(kept, text) if text else None
        shown = [versions.public(version, current) for version in kept]
        return json_answer({"name": name, "versions": shown, "diff": difference})

    def rollback(self, name: str) -> Answer:
        """Make a kept version the current one."""
        body = versions.ROLLBACK.decode(read_body(_ROLLBACK_BYTES) or b"{}")
        previous = self._registry.current(name).version
        version, changed = self._registry.rollback(name, body.version)
        return json_answer({"name": name, "version": version.version, "previous": previous, "changed": changed})

    def invoke(self, name: str) -> Answer:
        """A synchronous call."""
        payload = bodies.sync_payload(name, read_body(LIMITS.payload_bytes, what="payload"))
        asked = current()
        key = bodies.checked_key(asked.header(bodies.KEY_HEADER))
        trace = bodies.trace(asked.header(bodies.TRACE_HEADER))
        return self._invoker.call(name, payload, asked.environ, key, traceparent=trace)

    def has_bundle(self, sha256: str) -> Answer:
        """200 when the archive is here; never its content."""
        return Answer(b"", 200 if self._registry.has_bundle(bodies.checked_sha256(sha256)) else 404)

    def put_bundle(self, sha256: str) -> Answer:
        """Store an archive under its digest."""
        bodies.checked_sha256(sha256)
        self._registry.put_bundle(sha256, read_body(LIMITS.bundle_bytes, OCTETS, "bundle"))
        return json_answer({"sha256": sha256}, 201)


def _public(version: Version, activity: Activity) -> dict[str, Any]:
    return {
        "name": version.function,
        "version": version.version,
        "spec": version.spec,
        "bundles": version.bundles,
        "abi": version.abi,
        "deployed_at": iso(version.deployed_at_ms),
        "running": activity.running,
        "parked": activity.parked,
    }
