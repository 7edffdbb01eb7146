"""The shape of every answer about who may do what, and with which keys: tokens, secrets, callbacks. Like
``gateway.shapes``.
"""

from __future__ import annotations

from bananas.spec import RateSpec
from bananas.tokens import Scope
from gateway.shapes import Instant, Shape


class TokenInfo(Shape):
    """A token without its text."""

    id: str
    name: str
    scopes: list[Scope]
    functions: list[str]
    rate: RateSpec | None
    created_at: Instant
    expires_at: Instant | None


class CreatedToken(TokenInfo):
    """With its text, this once."""

    token: str


class TokenList(Shape):
    """Every token."""

    tokens: list[TokenInfo]


class Secret(Shape):
    """A secret without its value."""

    name: str
    version: str
    updated_at: Instant
    functions: list[str]


class SecretList(Shape):
    """Every secret."""

    secrets: list[Secret]


class SecretStored(Shape):
    """A secret that is kept now."""

    name: str
    version: str
    changed: bool


class CallbackKeys(Shape):
    """What callbacks are signed with."""

    #: ``whsec_`` and base64.
    keys: list[str]
