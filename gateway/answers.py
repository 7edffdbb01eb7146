"""What a call answers, and how answers are written: JSON bytes, instants. Decides nothing; every route calls it.

Stored JSON (results, errors) goes into an answer as ``msgspec.Raw``, so it is never parsed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from werkzeug.http import HTTP_STATUS_CODES

from bananas.units import iso as iso

JSON: Final = "application/json"
_ENCODE = msgspec.json.Encoder().encode
_LINES: Final = {code: f"{code} {phrase.upper()}" for code, phrase in HTTP_STATUS_CODES.items()}


class Answer:
    """A whole answer. Also a WSGI application that gives it to whoever asks, apart from what HTTP says of bodies."""

    __slots__ = ("body", "headers", "media", "status")

    def __init__(
        self, body: bytes, status: int = 200, headers: Iterable[tuple[str, str]] = (), media: str = ""
    ) -> None:
        """``media``: the type of the body; empty for an answer that names none, or does so in ``headers``."""
        self.body = body
        self.status = status
        self.headers = list(headers)
        self.media = media

    def lines(self) -> list[tuple[str, str]]:
        """All headers that it has by itself, without its length."""
        return [*self.headers, ("Content-Type", self.media)] if self.media else self.headers

    def __call__(self, _environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """WSGI."""
        start_response(status_line(self.status), [*self.lines(), ("Content-Length", str(len(self.body)))])
        return [self.body]


def status_line(status: int) -> str:
    """Such as ``202 ACCEPTED``."""
    return _LINES.get(status) or f"{status} UNKNOWN"


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """``body`` is anything that msgspec encodes; ``msgspec.Raw`` parts pass untouched."""
    return Answer(_ENCODE(body), status, headers.items() if headers else (), JSON)


def empty_answer() -> Answer:
    """204: there is no body, so no type of one either."""
    return Answer(b"", HTTPStatus.NO_CONTENT)


def raw_json(text: bytes | None) -> msgspec.Raw | None:
    """Stored JSON text as a part of an answer; None becomes null."""
    return None if text is None else msgspec.Raw(text)
