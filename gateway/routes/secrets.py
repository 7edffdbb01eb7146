"""``/secrets``: set, list and remove secrets of functions. A value goes in and never comes out."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from bananas.errors import SecretInUse, UnknownSecret
from bananas.registry import Registry
from bananas.secrets import SecretInfo, Secrets, check_name
from bananas.settings import LIMITS
from gateway.answers import Answer, empty_answer, iso, json_answer
from gateway.guard import OCTETS, read_body


class SecretRoutes:
    """The calls on secrets."""

    def __init__(self, secrets: Secrets, registry: Registry) -> None:
        self._secrets = secrets
        self._registry = registry

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("secrets", __name__)
        routes.add_url_rule("/secrets", view_func=self.all, methods=["GET"])
        routes.add_url_rule("/secrets/<name>", view_func=self.put, methods=["PUT"])
        routes.add_url_rule("/secrets/<name>", view_func=self.remove, methods=["DELETE"])
        return routes

    def all(self) -> Answer:
        """Names, when each was set, and which functions need it."""
        users = self._users()
        return json_answer({"secrets": [_public(info, users.get(info.name, [])) for info in self._secrets.list()]})

    def put(self, name: str) -> Answer:
        """Keep a value; sandboxes started from now on get it."""
        check_name(name)
        info, changed = self._secrets.put(name, read_body(LIMITS.secret_bytes, OCTETS, "secret"))
        return json_answer({"name": name, "version": info.version, "changed": changed})

    def remove(self, name: str) -> Answer:
        """Forget a value, unless a deployed function needs it."""
        check_name(name)
        if users := self._users().get(name):
            raise SecretInUse(
                f"secret {name!r} is needed by {', '.join(users)}; deploy without it or remove the function first"
            )
        if not self._secrets.remove(name):
            raise UnknownSecret(f"no secret {name!r} is set")
        return empty_answer()

    def _users(self) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for version in self._registry.versions():
            for secret in version.spec.secrets:
                users.setdefault(secret, []).append(version.function)
        return users


def _public(info: SecretInfo, users: list[str]) -> dict[str, Any]:
    return {"name": info.name, "version": info.version, "updated_at": iso(info.updated_at_ms), "functions": users}
