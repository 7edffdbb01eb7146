"""``/tokens``: create, list and take back API tokens. Only the answer that makes a token holds its text."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from flask import Blueprint

from bananas.errors import InvalidRequest, UnknownToken
from bananas.spec import Name, rate_of
from bananas.tokens import SCOPES, Scope, Token, Tokens
from bananas.units import parse_time_ms
from gateway.answers import Answer, empty_answer, iso, json_answer
from gateway.forms import Form
from gateway.guard import read_body

_BODY_BYTES = 16 * 1024


class NewToken(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /tokens``."""

    name: str
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1)]
    functions: tuple[Name, ...] = ()
    #: A time such as "30d"; None: for ever.
    expires_in: str | None = None
    #: Jobs that it may submit, such as "10/s"; None: as many as the queue takes.
    rate: str | None = None
    #: At once; None: as many as ``rate`` has in one of its periods.
    burst: int | None = None


_WANTED: Final = {
    "name": "a text that tells it from others",
    "scopes": f"a list of at least one of {', '.join(SCOPES)}",
    "functions": "a list of names of functions",
    "expires_in": 'a time such as "30d", or null for ever',
    "rate": 'a rate such as "10/s", or null for none',
    "burst": "a whole number, or null for as many as the rate says",
}
_FORM: Final = Form(NewToken, _WANTED, '{"name": "ci", "scopes": ["deploy"]}')


class TokenRoutes:
    """The calls on tokens."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("tokens", __name__)
        routes.add_url_rule("/tokens", view_func=self.all, methods=["GET"])
        routes.add_url_rule("/tokens", view_func=self.create, methods=["POST"])
        routes.add_url_rule("/tokens/<token_id>", view_func=self.remove, methods=["DELETE"])
        return routes

    def all(self) -> Answer:
        """Every token, without its text."""
        return json_answer({"tokens": [_public(token) for token in self._tokens.all()]})

    def create(self) -> Answer:
        """A new token with its text."""
        body = _FORM.decode(read_body(_BODY_BYTES, what="token"))
        try:
            ttl_s = None if body.expires_in is None else parse_time_ms(body.expires_in) / 1000
            rate = rate_of(body.rate, body.burst)
        except ValueError as e:
            raise InvalidRequest(f"not a valid token: {e}") from e
        token, text = self._tokens.create(body.name, body.scopes, body.functions, ttl_s, rate)
        return json_answer({**_public(token), "token": text}, 201, {"Cache-Control": "no-store"})

    def remove(self, token_id: str) -> Answer:
        """Take a token back."""
        if not self._tokens.remove(token_id):
            raise UnknownToken(f"no token has the id {token_id[:60]!r}")
        return empty_answer()


def _public(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": token.scopes,
        "functions": token.functions,
        "rate": token.rate,
        "created_at": iso(token.created_at_ms),
        "expires_at": iso(token.expires_at_ms),
    }
