"""Which ``callback_url`` a job may have here, and ``/callback-keys``: what receivers check callbacks with.

Called by the routes that take jobs. What a name in a URL leads to is decided where it is resolved, by the runner that
sends the callback.
"""

from __future__ import annotations

from collections.abc import Collection

from flask import Blueprint

from bananas import webhooks
from bananas.errors import InvalidRequest
from bananas.secrets import Secrets
from gateway.answers import Answer, json_answer


class CallbackRoutes:
    """The rules, and the call that tells the keys."""

    def __init__(self, secrets: Secrets, allowed: Collection[str]) -> None:
        """``allowed``: places that are not public, as in BANANAS_CALLBACK_ALLOW."""
        self._secrets = secrets
        self._allowed = frozenset(allowed)

    def blueprint(self) -> Blueprint:
        """The route, to be registered with the app."""
        routes = Blueprint("callbacks", __name__)
        routes.add_url_rule("/callback-keys", view_func=self.keys, methods=["GET"])
        return routes

    def check(self, url: str | None) -> None:
        """Raises InvalidRequest, or SecretKeyMissing when nothing here could sign a callback; None is no callback."""
        if url is None:
            return
        try:
            webhooks.checked_url(url, self._allowed)
        except ValueError as e:
            raise InvalidRequest(f"callback_url: {e}") from e
        self._secrets.callback_keys()

    def keys(self) -> Answer:
        """Every key that signs, the latest first: a receiver that knows one of them can check every callback."""
        found = [webhooks.secret_text(key) for key in self._secrets.callback_keys()]
        return json_answer({"keys": found}, headers={"Cache-Control": "no-store"})
