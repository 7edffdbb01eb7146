"""The function of the helper sandbox of ``contract: http``: turns each call into a request to the container beside it.

Both share a network of their own with nothing in it but loopback. It runs in a sandbox and not in the runner, because
what a container answers is not to be trusted. Loading it waits until the container listens; who waits too long is ended
by the runner, so nothing here has a deadline of its own.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
from typing import Any, NoReturn

HOST = "127.0.0.1"
PORT = int(os.environ["PORT"])
RESULT_BYTES = int(os.environ["BANANAS_RESULT_BYTES"])
#: There is no event for "somebody listens": the first look soon, later ones less often.
FIRST_S, LAST_S = 0.005, 0.1
#: Of a body that is shown in an error.
EXCERPT_CHARS = 1000
ERROR_BYTES = 64 * 1024


class ResultNotJson(Exception):
    """A body that is not JSON."""


class ResultTooLarge(Exception):
    """A body over the limit."""


class NoHttpAnswer(Exception):
    """The connection was refused, broke, or did not speak HTTP. The runner looks whether the container has ended."""


def wait_until_listening() -> None:
    """Return when something accepts connections at the port."""
    pause_s = FIRST_S
    while True:
        try:
            socket.create_connection((HOST, PORT), timeout=LAST_S).close()
        except OSError:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_S)
        else:
            return


def handle(event: Any, context: Any) -> Any:
    """One request: the payload is its body, the value of a 2xx answer the result."""
    try:
        status, headers, body = _request(json.dumps(event, ensure_ascii=False).encode(), context)
    except (OSError, http.client.HTTPException) as e:
        raise NoHttpAnswer(f"{type(e).__name__}: {e}") from None
    if not 200 <= status < 300:
        _fail(status, headers, body)
    if len(body) > RESULT_BYTES:
        raise ResultTooLarge(
            f"{context.function} answered more than {RESULT_BYTES} bytes; store large results elsewhere"
        )
    if not body.strip():
        return None
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        raise ResultNotJson(f"{context.function} answered {status} with a body that is not JSON: {e}") from None


def _request(body: bytes, context: Any) -> tuple[int, Any, bytes]:
    left_s = max(0.001, context.remaining_s())
    connection = http.client.HTTPConnection(HOST, PORT, timeout=left_s + 5)
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Bananas-Job-Id": context.job_id,
        "Bananas-Attempt": str(context.attempt),
        "Bananas-Function": context.function,
        "Bananas-Version": context.version,
        **({"traceparent": context.traceparent} if context.traceparent else {}),
        "Bananas-Deadline-Ms": str(round((time.time() + left_s) * 1000)),
    }
    try:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        limit = RESULT_BYTES if 200 <= answer.status < 300 else ERROR_BYTES
        return answer.status, answer.headers, answer.read(limit + 1)
    finally:
        connection.close()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _fail(status: int, headers: Any, body: bytes) -> NoReturn:
    """Raise what the answer says: a JSON object with ``type`` and ``message`` names its own error."""
    text = body[:ERROR_BYTES].decode("utf-8", "replace")
    kind, message, permanent, after_s = "HttpStatus", f"HTTP {status}: {text[:EXCERPT_CHARS].strip()}", False, None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and isinstance(said.get("type"), str) and isinstance(said.get("message"), str):
        kind, message = re.sub(r"\W", "_", said["type"])[:100] or kind, said["message"]
        permanent, after_s = said.get("permanent") is True, said.get("retry_after_s")
    if after_s is None and re.fullmatch(r"\d{1,6}", headers.get("Retry-After", "")):
        after_s = float(headers["Retry-After"])
    error = type(kind, (Exception,), {})(message)
    if permanent:
        error.permanent = True
    if isinstance(after_s, int | float) and not isinstance(after_s, bool):
        error.retry_after_s = after_s
    raise error


wait_until_listening()
