"""``/openapi.json``: what the API is, for programs."""

from __future__ import annotations

from functools import cache

import msgspec
from flask import Blueprint

from gateway import openapi
from gateway.answers import JSON, Answer


class OpenApiRoutes:
    """The one call."""

    def blueprint(self) -> Blueprint:
        """The route, to be registered with the app."""
        routes = Blueprint("openapi", __name__)
        routes.add_url_rule("/openapi.json", view_func=self.document, methods=["GET"])
        return routes

    def document(self) -> Answer:
        """OpenAPI 3.1."""
        return Answer(_document(), media=JSON)


@cache
def _document() -> bytes:
    return msgspec.json.encode(openapi.document())
