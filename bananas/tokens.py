"""API tokens: who may do what through a gateway beyond loopback.

A token is ``bn_<id>_<secret>``. Only the SHA-256 of the secret is stored; it has 256 random bits, so nothing slower is
needed. A token has scopes, may be bound to some functions, and may end at a time. Created and removed by the command
line or the gateway's admin calls; checked by the gateway for each request, from a copy that is at most
``CACHE_S`` old, so that a removed token is refused everywhere within that time and a call costs no round trip.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections import OrderedDict
from typing import Annotated, Final, Literal, get_args

import msgspec

from bananas import errors, keys, storage
from bananas.redis_client import Connections, unix_ms
from bananas.spec import Name, RateSpec

Scope = Literal["invoke", "deploy", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
#: How long a gateway process believes what it read.
CACHE_S: Final = 2.0
_CACHED: Final = 10_000
_TEXT: Final = re.compile(r"bn_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_MOST: Final = 1000


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a token; never the token itself."""

    id: str
    #: What its owner calls it.
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    #: ``invoke``: submit, look at and cancel jobs. ``deploy``: also functions, bundles, pools. ``admin``: everything.
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1)]
    #: Only these functions; empty: all.
    functions: tuple[Name, ...] = ()
    #: Jobs that it may submit; None: as many as the queue takes.
    rate: RateSpec | None = None
    created_at_ms: int
    #: Unix ms of Redis; None: never.
    expires_at_ms: int | None = None

    def allows(self, scope: Scope) -> bool:
        """``admin`` holds all, ``deploy`` also invokes."""
        held = set(self.scopes)
        return "admin" in held or scope in held or (scope == "invoke" and "deploy" in held)

    def covers(self, function: str) -> bool:
        """True when the token may touch the function."""
        return not self.functions or function in self.functions


class _Stored(msgspec.Struct, frozen=True):
    token: Token
    #: Of the secret, in hex.
    sha256: str


class Tokens:
    """All operations on tokens."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._redis = connections.commands
        #: Id → (monotonic seconds until it is believed, what was stored).
        self._cache: OrderedDict[str, tuple[float, _Stored | None]] = OrderedDict()

    def create(
        self,
        name: str,
        scopes: tuple[Scope, ...],
        functions: tuple[str, ...] = (),
        ttl_s: float | None = None,
        rate: RateSpec | None = None,
    ) -> tuple[Token, str]:
        """A new token, and its text, which is never to be had again. Raises InvalidRequest."""
        token_id, secret = os.urandom(6).hex(), secrets.token_urlsafe(32)
        with self._connections.guard():
            if self._redis.hlen(keys.TOKENS) >= _MOST:
                raise errors.InvalidRequest(f"there are {_MOST} tokens already; remove some")
            now_ms = unix_ms(self._redis.time())
            fields = {
                "id": token_id,
                "name": name,
                "scopes": scopes,
                "functions": functions,
                "rate": rate,
                "created_at_ms": now_ms,
                "expires_at_ms": None if ttl_s is None else now_ms + round(ttl_s * 1000),
            }
            try:
                token = msgspec.convert(fields, Token)
            except msgspec.ValidationError as e:
                raise errors.InvalidRequest(f"not a valid token: {e}") from e
            self._redis.hset(keys.TOKENS, token_id, storage.encode(_Stored(token, _digest(secret))))
        return token, f"bn_{token_id}_{secret}"

    def check(self, text: str) -> Token:
        """The token that this is the text of; raises Unauthorized. The message says nothing that helps to guess."""
        match = _TEXT.fullmatch(text)
        stored = self._find(match[1]) if match else None
        if match is None or stored is None or not hmac.compare_digest(stored.sha256, _digest(match[2])):
            raise errors.Unauthorized("the token is not valid; `bananas token create` makes one")
        expires_at_ms = stored.token.expires_at_ms
        if expires_at_ms is not None and expires_at_ms <= time.time_ns() // 1_000_000:
            raise errors.Unauthorized(f"the token {stored.token.id} has expired; `bananas token create` makes another")
        return stored.token

    def all(self) -> list[Token]:
        """Every token, oldest first."""
        with self._connections.guard():
            raw = self._redis.hvals(keys.TOKENS)
        found = [storage.decode(text, _Stored, "a token").token for text in raw]
        return sorted(found, key=lambda token: (token.created_at_ms, token.id))

    def remove(self, token_id: str) -> bool:
        """Take a token back; False when there was none."""
        self._cache.pop(token_id, None)
        with self._connections.guard():
            return bool(self._redis.hdel(keys.TOKENS, token_id))

    def exist(self) -> bool:
        """True when there is any."""
        with self._connections.guard():
            return bool(self._redis.exists(keys.TOKENS))

    def _find(self, token_id: str) -> _Stored | None:
        now = time.monotonic()
        until, stored = self._cache.get(token_id, (0.0, None))
        if now < until:
            return stored
        with self._connections.guard():
            raw = self._redis.hget(keys.TOKENS, token_id)
        stored = None if raw is None else storage.decode(raw, _Stored, f"token {token_id}")
        self._cache[token_id] = (now + CACHE_S, stored)
        self._cache.move_to_end(token_id)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return stored


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
