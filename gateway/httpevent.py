"""Raw HTTP: a request as the event of a handler, and what a handler returned as an answer. Pure, apart from reading the
request's environment that it is given.

The event has the shape of AWS's HTTP event 2.0, with short names for the same things on top. Nothing that is the
gateway's own goes in (its token, cookies of its host) and nothing that would change more than this answer comes out:
whatever a function says, it is one page in a sandbox of the browser (``ISOLATION``).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote

import msgspec

from bananas.errors import BananasError

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: A page of a function shares the gateway's address, but no rights with it: its scripts have an origin of their own.
ISOLATION: Final = {
    "Content-Security-Policy": "sandbox allow-scripts allow-forms allow-popups allow-downloads",
    "X-Content-Type-Options": "nosniff",
}
#: What belongs to one connection, or to its message as the gateway sends it.
_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade", "content-length", "date", "server"),
    }
)
#: Request headers that are for the gateway alone.
_NOT_IN: Final = _HOP | {"authorization", "cookie", "x-amz-security-token", "expect"}
#: Answer headers that would act on everything the browser has of this host.
_NOT_OUT: Final = _HOP | {"set-cookie", "clear-site-data", "strict-transport-security", "service-worker-allowed"}
#: What tells which headers were left out.
DROPPED: Final = "Bananas-Dropped-Headers"
_OWN: Final = "bananas-"
_TEXT: Final = re.compile(r"text/.*|application/(.*[+])?(json|xml|javascript|x-www-form-urlencoded|yaml|graphql)")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]{0,8192}")
_MAX_HEADERS: Final = 100
_KEYS: Final = frozenset({"status", "statusCode", "headers", "body", "isBase64", "isBase64Encoded"})


class BadAnswer(BananasError):
    """A handler's object looks like an HTTP answer and is none; the message says what is wrong."""

    code = "bad-answer"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What to send."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=list)


def event(environ: Mapping[str, Any], name: str, path: str, body: bytes) -> bytes:
    """The event of a request, as JSON text.

    Args:
        environ: the request's WSGI environment.
        path: what follows the function's name, decoded; begins with ``/``.
    """
    headers = _headers(environ)
    raw_query = _latin(environ.get("QUERY_STRING", ""))
    query: dict[str, str] = {}
    for key, value in parse_qsl(raw_query, keep_blank_values=True):
        query[key] = f"{query[key]},{value}" if key in query else value
    method = environ["REQUEST_METHOD"]
    text, is_base64 = _body_text(body, headers.get("content-type", ""))
    told = {
        "version": "2.0",
        "method": method,
        "path": path,
        "query": query,
        "headers": headers,
        "body": text,
        "isBase64Encoded": is_base64,
        "rawPath": _raw_path(environ, path),
        "rawQueryString": raw_query,
        "queryStringParameters": query,
        "requestContext": {
            "http": {
                "method": method,
                "path": path,
                "protocol": environ.get("SERVER_PROTOCOL", "HTTP/1.1"),
                "sourceIp": environ.get("REMOTE_ADDR", ""),
                "userAgent": headers.get("user-agent", ""),
            },
            "function": name,
        },
    }
    return msgspec.json.encode(told)


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    names = {key[5:].replace("_", "-").lower(): key for key in environ if key.startswith("HTTP_")}
    names |= {"content-type": "CONTENT_TYPE"} if environ.get("CONTENT_TYPE") else {}
    # What Connection names is of this connection as well.
    listed = {part.strip().lower() for part in environ.get("HTTP_CONNECTION", "").split(",")}
    return {name: _latin(environ[key]) for name, key in sorted(names.items()) if name not in _NOT_IN | listed}


def _latin(text: str) -> str:
    """WSGI gives bytes as Latin-1; most that is not ASCII is UTF-8."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _raw_path(environ: Mapping[str, Any], path: str) -> str:
    """The path as it was sent, where the server tells it."""
    parts = str(environ.get("RAW_URI", "")).partition("?")[0].split("/", 3)
    if len(parts) >= 3 and parts[0] == "" and parts[1] == "fn":
        return "/" + (parts[3] if len(parts) == 4 else "")
    return quote(path, safe="/:@!$&'()*+,;=~")


def _body_text(body: bytes, content_type: str) -> tuple[str | None, bool]:
    if not body:
        return None, False
    media = content_type.partition(";")[0].strip().lower()
    if not media or _TEXT.fullmatch(media):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(body).decode(), True


def answer(result: bytes) -> HttpAnswer:
    """What a handler's result says; raises BadAnswer.

    An object is an HTTP answer when it has no other keys than those of one, and its status, if given, is a number.
    Anything else is a body of JSON.
    """
    value = msgspec.json.decode(result) if result[:1] == b"{" else None
    if not isinstance(value, dict) or not _is_answer(value):
        return HttpAnswer(200, result, [("Content-Type", "application/json")])
    status = int(_status(value))
    if not 200 <= status <= 599:
        raise BadAnswer(f"the status must be from 200 to 599, not {status}")
    headers = _checked_headers(value.get("headers") or {})
    body, media = _checked_body(value)
    if status in (204, 304):
        body = b""
    if media and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", media))
    return HttpAnswer(status, body, headers)


def _is_answer(value: dict[str, Any]) -> bool:
    status = _status(value)
    return bool(value) and value.keys() <= _KEYS and isinstance(status, int) and not isinstance(status, bool)


def _status(value: dict[str, Any]) -> Any:
    return value["status"] if "status" in value else value.get("statusCode", 200)


def _checked_headers(headers: Any) -> list[tuple[str, str]]:
    if not isinstance(headers, dict) or len(headers) > _MAX_HEADERS:
        raise BadAnswer(f"headers must be an object of at most {_MAX_HEADERS} names")
    kept, dropped = [], []
    for name, given in headers.items():
        if not _NAME.fullmatch(name):
            raise BadAnswer(f"{name[:60]!r} is not the name of a header")
        if name.lower() in _NOT_OUT or name.lower().startswith(_OWN):
            dropped.append(name.lower())
            continue
        for value in given if isinstance(given, list) else [given]:
            text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
            if not isinstance(text, str) or not _VALUE.fullmatch(text):
                raise BadAnswer(f"header {name} must be text of one line and at most 8192 Latin-1 characters")
            kept.append((name, text))
    return kept + ([(DROPPED, ", ".join(sorted(dropped)))] if dropped else [])


def _checked_body(value: dict[str, Any]) -> tuple[bytes, str]:
    """The body, and its media type when the handler names none."""
    body = value.get("body")
    if value.get("isBase64", value.get("isBase64Encoded", False)):
        if not isinstance(body, str):
            raise BadAnswer("with isBase64 the body must be text in base64")
        try:
            return base64.b64decode(body, validate=True), "application/octet-stream"
        except (binascii.Error, ValueError) as e:
            raise BadAnswer(f"the body is not base64: {e}") from e
    if body is None:
        return b"", ""
    if isinstance(body, str):
        return body.encode(errors="replace"), "text/plain; charset=utf-8"
    return msgspec.json.encode(body), "application/json"
