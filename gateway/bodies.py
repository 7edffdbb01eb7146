"""Request bodies: what ``POST /jobs`` may say, what a payload is, and what is told when they are wrong.

A body is decoded once, into a closed struct (``gateway.forms``); the payload stays the bytes that the client sent.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated, Final

import msgspec

from bananas import spec
from bananas.errors import InvalidRequest, UnknownFunction
from bananas.job import NewJob
from bananas.settings import LIMITS
from bananas.units import parse_time_ms, show_time
from gateway.forms import SHOWN_CHARS, Form, check_utf8, reason, shown
from gateway.guard import too_large

#: What the body of ``POST /jobs`` may have on top of its payload.
ENVELOPE_BYTES: Final = 16 * 1024
#: The header that is the same as ``unique_key`` in the body.
KEY_HEADER: Final = "Idempotency-Key"
#: W3C's trace context; the handler gets it as ``context.traceparent``.
TRACE_HEADER: Final = "traceparent"
#: A time beyond this is a typing error.
_MAX_DELAY_MS: Final = LIMITS.delay_s * 1000
_MIN_TIMEOUT_MS: Final = 100
_TRACE_IDS: Final = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
#: W3C's trace context, of version 00 and, as far as it is known, of later ones.
_TRACE: Final = rf"(00-{_TRACE_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_TRACE_IDS}(-[!-~]{{1,200}})?)"
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

Time = str | int | float
Trace = Annotated[str, msgspec.Meta(pattern=rf"^{_TRACE}(?![\s\S])")]
#: Without spaces at its ends, which a header would lose.
UniqueKey = Annotated[str, msgspec.Meta(pattern=r"^[!-~]([ -~]*[!-~])?(?![\s\S])", max_length=LIMITS.unique_key_chars)]
_KEY_RULE: Final = f"1 to {LIMITS.unique_key_chars} printable ASCII characters without spaces at its ends"


class SubmitBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /jobs``; null counts as not given."""

    name: str
    payload: msgspec.Raw = msgspec.Raw(b"null")
    priority: spec.Priority | None = None
    pool: spec.Name | None = None
    delay: Time | None = None
    run_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=spec.MAX_RETRIES)] | None = None
    timeout: Time | None = None
    expires_after: Time | None = None
    unique_key: UniqueKey | None = None
    #: Wins over the request's header, which stands for all jobs of a batch.
    traceparent: Trace | None = None
    callback_url: Annotated[str, msgspec.Meta(max_length=LIMITS.callback_url_chars)] | None = None
    like: Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")] | None = None


#: What is right for a field, as the end of "… must be".
_WANTED: Final = {
    "name": "the name of a function",
    "priority": "high, normal or low",
    "pool": "the name of a pool",
    "delay": 'a time such as "10s" or a number of seconds',
    "run_at": 'an RFC 3339 time with a zone such as "2026-11-24T06:00:00Z"',
    "retries": f"a whole number from 0 to {spec.MAX_RETRIES}",
    "timeout": 'a time such as "30s" or a number of seconds',
    "expires_after": 'a time such as "10m" or a number of seconds',
    "unique_key": _KEY_RULE,
    "traceparent": "a W3C trace context such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "callback_url": "the URL of an HTTP server such as https://example.com/bananas",
    "like": "the id of an earlier job of the function",
}
_SUBMIT: Final = Form(SubmitBody, _WANTED, '{"name": "hello", "payload": {}}')
_CHECK = msgspec.json.Decoder(msgspec.Raw).decode


def new_job(raw: bytes, header_key: str | None = None, traceparent: str | None = None) -> NewJob:
    """The job that a body of ``POST /jobs`` asks for; raises InvalidRequest, PayloadTooLarge or UnknownFunction.

    Args:
        header_key: the request's ``Idempotency-Key``, if it has one.
        traceparent: the request's trace context, as ``trace`` lets it through; for a body without one.
    """
    body = _SUBMIT.decode(raw)
    _check_name(body.name)
    if body.delay is not None and body.run_at is not None:
        raise InvalidRequest("delay and run_at exclude each other; give one of them")
    delay_ms = _optional_ms("delay", body.delay, 0, _MAX_DELAY_MS) or 0
    run_at_ms = None if body.run_at is None else max(0, round(body.run_at.timestamp() * 1000))
    expires_after_ms = _optional_ms("expires_after", body.expires_after, 1, _MAX_DELAY_MS)
    _check_times(delay_ms, run_at_ms, expires_after_ms)
    payload = bytes(body.payload)
    if len(payload) > LIMITS.payload_bytes:
        raise too_large("payload", len(payload), LIMITS.payload_bytes)
    return NewJob(
        function=body.name,
        payload=payload,
        pool=body.pool,
        priority=body.priority,
        timeout_ms=_optional_ms("timeout", body.timeout, _MIN_TIMEOUT_MS, spec.DAY_MS),
        max_retries=body.retries,
        delay_ms=delay_ms,
        run_at_ms=run_at_ms,
        expires_after_ms=expires_after_ms,
        unique_key=_one_key(body.unique_key, checked_key(header_key)),
        traceparent=body.traceparent or traceparent,
        callback_url=body.callback_url,
        like=body.like,
    )


def _check_times(delay_ms: int, run_at_ms: int | None, expires_after_ms: int | None) -> None:
    """Raises InvalidRequest for a job that would begin too far from now, or never because it expires before."""
    wait_ms, key = delay_ms, "delay"
    if run_at_ms is not None:
        wait_ms, key = run_at_ms - time.time_ns() // 1_000_000, "run_at"
        if wait_ms > _MAX_DELAY_MS:
            raise InvalidRequest(f"run_at is more than {show_time(_MAX_DELAY_MS)} from now; submit the job later")
    if expires_after_ms is not None and wait_ms >= expires_after_ms:
        raise InvalidRequest(
            f"expires_after is {show_time(expires_after_ms)} from now, and {key} lets the job begin no sooner than in "
            f"{show_time(wait_ms)}: it could never run; make expires_after longer"
        )


def checked_key(header: str | None) -> str | None:
    """The request's ``Idempotency-Key``; raises InvalidRequest when it is none."""
    if header is None:
        return None
    try:
        return msgspec.convert(header, UniqueKey)
    except msgspec.ValidationError as e:
        raise InvalidRequest(f"{KEY_HEADER} must be {_KEY_RULE}, not {shown(header)}") from e


def trace(header: str | None) -> str | None:
    """The request's ``traceparent``; None without one and, as W3C wants it, for what is none."""
    return header if header is not None and re.fullmatch(_TRACE, header) else None


def _one_key(in_body: str | None, in_header: str | None) -> str | None:
    if in_body is not None and in_header is not None and in_body != in_header:
        raise InvalidRequest(
            f"unique_key {shown(in_body)} and {KEY_HEADER} {shown(in_header)} are not the same; give one of them"
        )
    return in_body if in_header is None else in_header


def payload(raw: bytes) -> bytes:
    """JSON text as it was sent; an empty body is null. Raises InvalidRequest."""
    if not raw:
        return b"null"
    check_utf8(raw)
    try:
        return bytes(_CHECK(raw))
    except (msgspec.DecodeError, RecursionError) as e:
        raise InvalidRequest(f"the payload is not valid JSON: {reason(e)}") from e


def sync_payload(name: str, raw: bytes) -> bytes:
    """The payload of a synchronous call of ``name``; raises InvalidRequest or UnknownFunction."""
    _check_name(name)
    return payload(raw)


def wait_s(text: str | None) -> float | None:
    """Seconds of a request's ``?wait=``, at most ``LIMITS.wait_s``; None without one. Raises InvalidRequest."""
    if text is None:
        return None
    try:
        seconds = float(text) if _NUMBER.fullmatch(text) else parse_time_ms(text) / 1000
    except ValueError as e:
        raise InvalidRequest(f"wait must be a number of seconds from 0 to {LIMITS.wait_s}, not {text[:60]!r}") from e
    return min(seconds, LIMITS.wait_s)


def flag(name: str, text: str | None) -> bool:
    """``?name=1`` or ``=0``; without it no. Raises InvalidRequest."""
    if text not in (None, "0", "1"):
        raise InvalidRequest(f"{name} must be 1 or 0, not {text[:60]!r}")
    return text == "1"


def checked_name(name: str, what: str) -> str:
    """A name that may be created; raises InvalidRequest with the rule."""
    try:
        return msgspec.convert(name, spec.Name)
    except msgspec.ValidationError as e:
        rule = "a lower-case letter, then up to 62 of a-z, 0-9, _ and -"
        raise InvalidRequest(f"{name[:SHOWN_CHARS]!r} is not a name for a {what}; write {rule}") from e


def checked_sha256(text: str) -> str:
    """A digest; raises InvalidRequest for anything else."""
    try:
        return msgspec.convert(text, spec.Sha256)
    except msgspec.ValidationError as e:
        raise InvalidRequest(f"{text[:SHOWN_CHARS]!r} is not a SHA-256; write 64 lower-case hex digits") from e


def _check_name(name: str) -> None:
    """What can't be a name was never deployed; it isn't looked for."""
    try:
        msgspec.convert(name, spec.Name)
    except msgspec.ValidationError as e:
        found = name[:SHOWN_CHARS]
        raise UnknownFunction(f"no function {found!r} is deployed", function=found) from e


def _optional_ms(key: str, value: Time | None, low_ms: int, high_ms: int) -> int | None:
    """Milliseconds of a time in a request: ``"10s"`` or a number of seconds."""
    if value is None:
        return None
    try:
        ms = parse_time_ms(value) if isinstance(value, str) else value * 1000
    except ValueError as e:
        raise InvalidRequest(f"{key} must be {_WANTED[key]}, not {shown(value)}") from e
    # Rounded last: a number of a request may be too large for that.
    if not low_ms <= ms <= high_ms:
        raise InvalidRequest(f"{key} must be from {show_time(low_ms)} to {show_time(high_ms)}, not {shown(value)}")
    return round(ms)
