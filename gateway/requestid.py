"""Every request has an id: the sane one that its client sent as ``X-Request-Id``, else one made here.

It is in the answer, in what is logged about the request, and in the body of a problem that only the log explains.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

from flask import Flask, Response, g, request

from bananas import events, logs

HEADER: Final = "X-Request-Id"
_SANE: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def current() -> str:
    """The id of the request that is being served."""
    if "request_id" not in g:
        sent = request.headers.get(HEADER, "")
        g.request_id = sent if _SANE.fullmatch(sent) else new()
    return str(g.request_id)


def new() -> str:
    """An id for a request that brought none."""
    return uuid.uuid4().hex[:16]


def register(app: Flask) -> None:
    """Give every request of ``app`` its id, which is bound to what is logged meanwhile, and log those that end in a
    problem.
    """
    app.before_request(_begin)
    app.after_request(_finish)


def _begin() -> None:
    logs.bind(request=current(), trace=logs.trace_id(request.headers.get("Traceparent")))


def _finish(answer: Response) -> Response:
    answer.headers[HEADER] = current()
    if answer.mimetype == "application/problem+json":
        tell = events.REQUEST_FAILED if answer.status_code == 503 else events.REQUEST_REFUSED
        tell(request=current(), method=request.method, path=request.path, status=answer.status_code)
    return answer
