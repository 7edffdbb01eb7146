"""What one request is to everything that looks at it: its environment, its call, its id, its token.

Made once for each request by ``gateway.direct``, before anything else; whatever serves the request in the same greenlet
finds it by ``current``. So checks and routes need not know on which of the two ways a request came.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

from bananas.tokens import Token

#: Its header in requests and answers.
ID_HEADER: Final = "X-Request-Id"
_SANE: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_NOTHING: Final[Mapping[str, str]] = {}

_current: ContextVar[Asked] = ContextVar("bananas_asked")


class Asked:
    """One request."""

    __slots__ = ("_id", "args", "arrived_s", "endpoint", "environ", "token")

    def __init__(self, environ: dict[str, Any]) -> None:
        """``environ`` is its WSGI environment."""
        self.environ = environ
        #: By the monotonic clock.
        self.arrived_s = time.monotonic()
        #: Flask's name of the call that it means; None until that is known, and where nothing is.
        self.endpoint: str | None = None
        #: The parts of its path that the call names.
        self.args = _NOTHING
        #: Set once it is checked, on a gateway that asks for tokens.
        self.token: Token | None = None
        self._id = ""

    @property
    def method(self) -> str:
        """Such as ``POST``."""
        method: str = self.environ["REQUEST_METHOD"]
        return method.upper()

    @property
    def path(self) -> str:
        """Decoded, for people to read."""
        sent: str = self.environ.get("PATH_INFO", "")
        return "/" + sent.encode("latin-1").decode(errors="replace").lstrip("/")

    @property
    def id(self) -> str:
        """The sane id that its client sent, else one made here."""
        if not self._id:
            sent: str = self.environ.get("HTTP_X_REQUEST_ID", "")
            self._id = sent if _SANE.fullmatch(sent) else new_id()
        return self._id

    def header(self, name: str) -> str | None:
        """A header other than Content-Type and Content-Length; None without it."""
        value: str | None = self.environ.get(_key(name))
        return value


def begin(environ: dict[str, Any]) -> Asked:
    """Make a request the current one of this greenlet, until the next one comes."""
    asked = Asked(environ)
    _current.set(asked)
    return asked


def current() -> Asked:
    """The request that is being served."""
    return _current.get()


def new_id() -> str:
    """An id for a request that brought none."""
    return os.urandom(8).hex()


@functools.lru_cache(maxsize=64)
def _key(name: str) -> str:
    return "HTTP_" + name.upper().replace("-", "_")
