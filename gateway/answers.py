"""What a call answers, and how answers are written: JSON bytes, instants. Decides nothing; every route calls it.

Stored JSON (results, errors) goes into an answer as ``msgspec.Raw``, so it is never parsed here.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final
from wsgiref.handlers import format_date_time

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
        start_response(_status_line(self.status), [*self.lines(), ("Content-Length", str(len(self.body)))])
        return [self.body]

    def head(self, version: tuple[int, int], server: str, *, closes: bool) -> bytes:
        """The bytes that gunicorn would write in front of its body. Not for HEAD, nor for a status that has no body.

        Args:
            version: of HTTP, as in the request.
            server: what the server calls itself.
            closes: the connection ends after it.
        """
        lines = [
            f"HTTP/{version[0]}.{version[1]} {_status_line(self.status)}",
            f"Server: {server}",
            f"Date: {_date(int(time.time()))}",
            f"Connection: {'close' if closes else 'keep-alive'}",
            *[f"{name}: {value}" for name, value in self.lines()],
            f"Content-Length: {len(self.body)}",
        ]
        head = "\r\n".join(lines)
        if not head.count("\n") == head.count("\r") == len(lines) - 1:
            raise ValueError(f"a header of the answer has more than one line: {lines[4:]}")
        return head.encode("latin-1") + b"\r\n\r\n"


@functools.lru_cache(maxsize=1)
def _date(unix_s: int) -> str:
    return format_date_time(unix_s)


def _status_line(status: int) -> str:
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
