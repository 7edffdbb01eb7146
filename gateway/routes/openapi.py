"""``/openapi.json``: what the API is, for programs."""

from __future__ import annotations

from functools import cache

import msgspec
from flask import Blueprint, Response

from gateway import openapi


class OpenApiRoutes:
    """The one call."""

    def blueprint(self) -> Blueprint:
        """The route, to be registered with the app."""
        routes = Blueprint("openapi", __name__)
        routes.add_url_rule("/openapi.json", view_func=self.document, methods=["GET"])
        return routes

    def document(self) -> Response:
        """OpenAPI 3.1."""
        return Response(_document(), content_type="application/json")


@cache
def _document() -> bytes:
    return msgspec.json.encode(openapi.document())
