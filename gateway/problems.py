"""Errors as RFC 9457 problems: which status an error has, and what its body says.

Errors of ours are raised where they are known and become a problem here, nowhere else. An exception that nobody
foresaw becomes a 500 with a request id; its traceback goes to the log under that id and never to the client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from werkzeug.exceptions import HTTPException

from bananas import events
from bananas.errors import BananasError, Unauthorized, Unavailable
from gateway.answers import Answer
from gateway.asked import ID_HEADER, current, new_id

#: The media type of a problem.
MEDIA: Final = "application/problem+json"
#: Stable code → HTTP status and title.
STATUSES: Final[dict[str, tuple[int, str]]] = {
    "request": (400, "The request is wrong"),
    "invalid-request": (422, "The request is not valid"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body has the wrong type"),
    "origin-not-allowed": (403, "Pages of this origin are not served"),
    "bad-answer": (502, "The function's answer is not HTTP"),
    "host-not-allowed": (403, "This host name is not served"),
    "unknown-function": (404, "No such function"),
    "unknown-job": (404, "No such job"),
    "job-expired": (410, "The job's record is gone"),
    "unknown-bundle": (422, "No such bundle"),
    "unknown-pool": (422, "Not a pool for this"),
    "job-finished": (409, "The job is already over"),
    "job-not-dead": (409, "The job is not a dead letter"),
    "unauthorized": (401, "A valid token is needed"),
    "forbidden": (403, "The token does not allow this"),
    "unknown-token": (404, "No such token"),
    "unknown-schedule": (404, "No such schedule"),
    "unknown-secret": (422, "No such secret"),
    "secret-in-use": (409, "The secret is needed"),
    "no-secret-key": (503, "No key for secrets"),
    "version-gone": (409, "The version is not kept any more"),
    "unavailable": (503, "Not possible right now"),
    "redis-unavailable": (503, "Redis does not answer"),
    "newer-release": (503, "A newer release wrote this"),
    "queue-full": (429, "The queue is full"),
    "rate-limited": (429, "More than the rate allows"),
    "no-live-runner": (503, "No live runner serves the pool"),
    "not-ready": (503, "The gateway is not ready"),
    # How a synchronous call can end other than well.
    "handler-error": (500, "The handler raised an error"),
    "sandbox-died": (502, "The sandbox died"),
    "sandbox-start": (502, "The sandbox did not start"),
    "timeout": (504, "The call took too long"),
    "job-cancelled": (409, "The job was cancelled"),
    # What Flask finds wrong by itself.
    "not-found": (404, "Nothing is here"),
    "method-not-allowed": (405, "This method is not served here"),
    "uri-too-long": (414, "The address is too long"),
    "headers-too-large": (431, "The headers are too large"),
    "internal-error": (500, "The gateway failed"),
}
#: Seconds after which a client may try again, for errors that pass.
_RETRY_AFTER_S: Final = {"queue-full": 5, "no-live-runner": 2}
_HTTP_CODES: Final = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "unsupported-media-type"}


def problem(code: str, detail: str, *, headers: Mapping[str, str] | None = None, **facts: Any) -> Answer:
    """A problem answer; ``facts`` are further members of its body and must be encodable by msgspec."""
    status, title = STATUSES[code]
    return _answer(code, status, title, detail, headers or {}, facts)


def body(code: str, detail: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a problem, for one that is told inside another answer."""
    status, title = STATUSES.get(code, STATUSES["internal-error"])
    return _body(code, status, title, detail, facts)


def _body(code: str, status: int, title: str, detail: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: value for name, value in facts.items() if value is not None},
        "type": f"urn:bananas:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }


def _answer(
    code: str, status: int, title: str, detail: str, headers: Mapping[str, str], facts: Mapping[str, Any]
) -> Answer:
    text = msgspec.json.encode(_body(code, status, title, detail, facts))
    return Answer(text, status, headers.items(), MEDIA)


def retry_after(error: BananasError) -> dict[str, str]:
    """The header of an error that passes: whole seconds; nothing for others."""
    if not isinstance(error, Unavailable):
        return {}
    wait_ms = error.details.get("retry_after_ms", 1000 * _RETRY_AFTER_S.get(error.code, 1))
    return {"Retry-After": str(max(1, math.ceil(wait_ms / 1000)))}


def unread(code: str, detail: str) -> bytes:
    """The whole answer, as it goes over the wire, to what is no request that Flask could see."""
    status, title = STATUSES[code]
    request_id = new_id()
    events.REQUEST_UNREADABLE(request=request_id, code=code, detail=detail)
    text = msgspec.json.encode(_body(code, status, title, detail, {}))
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {MEDIA}\r\n"
        f"Content-Length: {len(text)}\r\n{ID_HEADER}: {request_id}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text


def of_error(error: BananasError) -> Answer:
    """The problem of one of our errors; one without a status of its own is our fault."""
    if error.code not in STATUSES:
        return _unforeseen(error)
    headers = retry_after(error)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    details = {name: value for name, value in error.details.items() if name != "headers"}
    return problem(error.code, str(error), headers=headers, **details)


def of(error: Exception) -> Answer:
    """The problem of anything that a call can end with; what nobody foresaw is logged and hidden."""
    if isinstance(error, BananasError):
        return of_error(error)
    return _of_http(error) if isinstance(error, HTTPException) else _unforeseen(error)


def _of_http(error: HTTPException) -> Answer:
    """Flask's own: no route, wrong method, a body that breaks HTTP."""
    asked, status = current(), error.code or 500
    headers = {k: v for k, v in error.get_headers() if k.lower() not in ("content-type", "content-length")}
    code = _HTTP_CODES.get(status, "request" if status < 500 else "internal-error")
    detail = f"{asked.method} {asked.path}: {error.description}"
    if code == "method-not-allowed":
        detail = f"{asked.method} is not served at {asked.path}; allowed: {headers.get('Allow', '')}"
    elif code == "not-found":
        detail = f"nothing is at {asked.path}; the calls are listed in docs/http-api.md"
    return _answer(code, status, STATUSES[code][1], detail, headers, {})


def _unforeseen(error: Exception) -> Answer:
    asked = current()
    events.REQUEST_DEFECT(error, request=asked.id, method=asked.method, path=asked.path)
    return problem("internal-error", f"see request {asked.id} in the gateway's log", request=asked.id)
