"""AWS's invoke call: ``POST /2015-03-31/functions/{name}/invocations``, so that boto3 and its kin work with
``endpoint_url``.

Says ends and errors in AWS's words. Signatures are not checked: without tokens the gateway is on loopback and any
credentials do; with them the token goes where AWS's session token does (``gateway.auth``). A body of any type is
taken, so without tokens other sites' pages are refused like for raw HTTP.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final

import msgspec
from flask import Blueprint, request

from bananas.errors import BananasError, InvalidRequest, UnknownFunction
from bananas.job import NewJob, Outcome
from bananas.queue import Queue
from bananas.registry import Registry
from bananas.settings import KIB, LIMITS
from gateway import auth, bodies
from gateway.answers import JSON, Answer, empty_answer
from gateway.guard import ANY, check_origin, read_body
from gateway.invoke import Invoker
from gateway.problems import STATUSES, of_error, retry_after
from gateway.records import AttemptReport

_REQUEST_ID: Final = "x-amzn-RequestId"
_LOG_BYTES: Final = 4 * KIB
#: A name, with a qualifier or as the end of an ARN.
_TARGET: Final = re.compile(
    r"(?:(?:arn:[^:]*:lambda:[^:]*:)?[^:]*:function:)?(?P<name>[^:]+)(?::(?P<qualifier>[^:]+))?"
)
#: Our code → AWS's.
_TYPES: Final = {
    "unknown-function": "ResourceNotFoundException",
    "queue-full": "TooManyRequestsException",
    "rate-limited": "TooManyRequestsException",
    "too-large": "RequestTooLargeException",
    "invalid-request": "InvalidRequestContentException",
    "unauthorized": "UnrecognizedClientException",
    "forbidden": "AccessDeniedException",
    "origin-not-allowed": "AccessDeniedException",
    "host-not-allowed": "AccessDeniedException",
}
#: AWS has 400 for what is 422 here, and 403 for an unknown token.
_AWS_STATUS: Final = {"invalid-request": 400, "unauthorized": 403}


class _Error(msgspec.Struct):
    type: str = "Error"
    message: str = ""
    traceback: str = ""


class AwsTelling:
    """A result with 200; a failure of the function too, with AWS's header and error body."""

    def __init__(self, queue: Queue, with_log: bool, version: str) -> None:
        self._queue = queue
        self._with_log = with_log
        self._version = version

    def result(self, function: str, result: bytes, headers: dict[str, str]) -> Answer:  # noqa: ARG002
        """The result as it is."""
        return self._answer(result, headers)

    def failure(self, function: str, job_id: str, attempt: AttemptReport, headers: dict[str, str]) -> Answer:  # noqa: ARG002
        """``{"errorMessage", "errorType", "stackTrace"}``."""
        error = msgspec.json.decode(attempt.error, type=_Error | None) or _Error(attempt.outcome)
        body: dict[str, Any] = {"errorMessage": error.message, "errorType": error.type, "requestId": job_id}
        if attempt.outcome in (Outcome.ERROR, Outcome.PERMANENT):
            body["stackTrace"] = error.traceback.splitlines(keepends=True)
        return self._answer(msgspec.json.encode(body), {**headers, "X-Amz-Function-Error": "Unhandled"})

    def _answer(self, body: bytes, headers: dict[str, str]) -> Answer:
        job_id = headers["Bananas-Job-Id"]
        told = {**headers, _REQUEST_ID: job_id, "X-Amz-Executed-Version": self._version}
        if self._with_log:
            text = b"".join(self._queue.logs(job_id).values())[-_LOG_BYTES:]
            told["X-Amz-Log-Result"] = base64.b64encode(text).decode()
        return Answer(body, 200, told.items(), JSON)


class AwsRoutes:
    """The one call."""

    def __init__(self, queue: Queue, registry: Registry, invoker: Invoker, has_tokens: bool) -> None:
        """``has_tokens``: every request shows a token, which no other site's page can."""
        self._queue = queue
        self._registry = registry
        self._invoker = invoker
        self._has_tokens = has_tokens

    def blueprint(self) -> Blueprint:
        """The route, and AWS's form for what is refused."""
        routes = Blueprint("aws", __name__)
        path = "/2015-03-31/functions/<target>/invocations"
        routes.add_url_rule(path, endpoint="invoke", view_func=self.invoke, methods=["POST"])
        routes.register_error_handler(BananasError, _of_error)
        return routes

    def invoke(self, target: str) -> Answer:
        """RequestResponse (200), Event (202) or DryRun (204)."""
        if not self._has_tokens:
            check_origin()
        name, qualifier = _split(target)
        auth.require_function(name)
        version = self._version(name, qualifier or request.args.get("Qualifier"))
        payload = bodies.sync_payload(name, read_body(LIMITS.payload_bytes, ANY, "payload"))
        trace = bodies.trace(request.headers.get(bodies.TRACE_HEADER))
        match kind := request.headers.get("X-Amz-Invocation-Type", "RequestResponse"):
            case "DryRun":
                return empty_answer()
            case "Event":
                queued = self._queue.enqueue(auth.metered(NewJob(name, payload, traceparent=trace)))
                headers = {"Bananas-Job-Id": queued.id, _REQUEST_ID: queued.id}
                return Answer(b"", 202, headers.items(), JSON)
            case "RequestResponse":
                with_log = request.headers.get("X-Amz-Log-Type") == "Tail"
                telling = AwsTelling(self._queue, with_log, version)
                return self._invoker.call(name, payload, request.environ, traceparent=trace, telling=telling)
        raise InvalidRequest(f"X-Amz-Invocation-Type is RequestResponse, Event or DryRun, not {kind[:60]!r}")

    def _version(self, name: str, qualifier: str | None) -> str:
        """The version that will run: the current one, which is all that can be asked for."""
        current = self._registry.current(name).version
        if qualifier not in (None, "$LATEST", current):
            raise UnknownFunction(
                f"{name!r} runs version {current}, not {str(qualifier)[:60]!r}: leave Qualifier out, or roll back",
                function=name,
            )
        return current


def _split(target: str) -> tuple[str, str | None]:
    match = _TARGET.fullmatch(target)
    if match is None:
        raise UnknownFunction(f"no function {target[:60]!r} is deployed", function=target[:60])
    return match["name"], match["qualifier"]


def _of_error(error: BananasError) -> Answer:
    """What is refused, as AWS's clients read it."""
    if error.code not in STATUSES:
        return of_error(error)
    status = _AWS_STATUS.get(error.code, STATUSES[error.code][0])
    name = _TYPES.get(error.code, "ServiceException")
    told = {"Type": "User" if status < 500 else "Service", "message": str(error), "code": error.code}
    headers = {"x-amzn-ErrorType": name, **retry_after(error)}
    return Answer(msgspec.json.encode(told), status, headers.items(), JSON)
