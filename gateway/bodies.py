"""Request bodies: what ``POST /jobs`` may say, what a payload is, and what is told when they are wrong.

A body is decoded once, into a closed struct; the payload stays the bytes that the client sent. Only when that fails
is it looked at again, slowly, so that all problems are named at once and in words.
"""

from __future__ import annotations

import difflib
import re
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from bananas import spec
from bananas.errors import InvalidRequest, UnknownFunction
from bananas.job import NewJob
from bananas.settings import LIMITS
from bananas.units import parse_time_ms, show_time
from gateway.guard import too_large

#: What the body of ``POST /jobs`` may have on top of its payload.
ENVELOPE_BYTES: Final = 16 * 1024
#: A delay beyond this is a typing error.
_MAX_DELAY_MS: Final = 3650 * spec.DAY_MS
_MIN_TIMEOUT_MS: Final = 100
_SHOWN_CHARS: Final = 60
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

Time = str | int | float


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
    #: Known, so that they are told apart from typing errors, but refused until a release supports them.
    unique_key: Any = msgspec.UNSET
    callback_url: Any = msgspec.UNSET


_NOT_YET: Final = ("unique_key", "callback_url")
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
}
_FIELDS: Final = {field.name: field.type for field in msgspec.structs.fields(SubmitBody)}
_DECODE = msgspec.json.Decoder(SubmitBody).decode
_CHECK = msgspec.json.Decoder(msgspec.Raw).decode


def new_job(raw: bytes) -> NewJob:
    """The job that a body of ``POST /jobs`` asks for; raises InvalidRequest, PayloadTooLarge or UnknownFunction."""
    _check_utf8(raw)
    try:
        body = _DECODE(raw)
    except (msgspec.DecodeError, RecursionError) as e:
        raise InvalidRequest("; ".join(_problems(raw, e))) from e
    _check_name(body.name)
    if not_yet := [key for key in _NOT_YET if getattr(body, key) is not msgspec.UNSET]:
        raise InvalidRequest("; ".join(f"{key} is not supported by this release" for key in not_yet))
    if body.delay is not None and body.run_at is not None:
        raise InvalidRequest("delay and run_at exclude each other; give one of them")
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
        delay_ms=_optional_ms("delay", body.delay, 0, _MAX_DELAY_MS) or 0,
        run_at_ms=None if body.run_at is None else max(0, round(body.run_at.timestamp() * 1000)),
        expires_after_ms=_optional_ms("expires_after", body.expires_after, 1, _MAX_DELAY_MS),
    )


def sync_payload(name: str, raw: bytes) -> bytes:
    """The payload of a synchronous call of ``name``: JSON text; an empty body is null. Raises InvalidRequest."""
    _check_name(name)
    if not raw:
        return b"null"
    _check_utf8(raw)
    try:
        return bytes(_CHECK(raw))
    except (msgspec.DecodeError, RecursionError) as e:
        raise InvalidRequest(f"the payload is not valid JSON: {_reason(e)}") from e


def wait_s(text: str | None) -> float | None:
    """Seconds of a request's ``?wait=``, at most ``LIMITS.wait_s``; None without one. Raises InvalidRequest."""
    if text is None:
        return None
    try:
        seconds = float(text) if _NUMBER.fullmatch(text) else parse_time_ms(text) / 1000
    except ValueError as e:
        raise InvalidRequest(f"wait must be a number of seconds from 0 to {LIMITS.wait_s}, not {text[:60]!r}") from e
    return min(seconds, LIMITS.wait_s)


def checked_name(name: str, what: str) -> str:
    """A name that may be created; raises InvalidRequest with the rule."""
    try:
        return msgspec.convert(name, spec.Name)
    except msgspec.ValidationError as e:
        rule = "a lower-case letter, then up to 62 of a-z, 0-9, _ and -"
        raise InvalidRequest(f"{name[:_SHOWN_CHARS]!r} is not a name for a {what}; write {rule}") from e


def checked_sha256(text: str) -> str:
    """A digest; raises InvalidRequest for anything else."""
    try:
        return msgspec.convert(text, spec.Sha256)
    except msgspec.ValidationError as e:
        raise InvalidRequest(f"{text[:_SHOWN_CHARS]!r} is not a SHA-256; write 64 lower-case hex digits") from e


def _check_name(name: str) -> None:
    """What can't be a name was never deployed; it isn't looked for."""
    try:
        msgspec.convert(name, spec.Name)
    except msgspec.ValidationError as e:
        shown = name[:_SHOWN_CHARS]
        raise UnknownFunction(f"no function {shown!r} is deployed", function=shown) from e


def _check_utf8(raw: bytes) -> None:
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError as e:
            raise InvalidRequest(f"the body is not valid JSON: byte {e.start} is not UTF-8") from e


def _optional_ms(key: str, value: Time | None, low_ms: int, high_ms: int) -> int | None:
    """Milliseconds of a time in a request: ``"10s"`` or a number of seconds."""
    if value is None:
        return None
    try:
        ms = parse_time_ms(value) if isinstance(value, str) else round(value * 1000)
    except ValueError as e:
        raise InvalidRequest(f"{key} must be {_WANTED[key]}, not {_shown(value)}") from e
    if not low_ms <= ms <= high_ms:
        raise InvalidRequest(f"{key} must be from {show_time(low_ms)} to {show_time(high_ms)}, not {_shown(value)}")
    return ms


def _problems(raw: bytes, error: Exception) -> list[str]:
    """Everything that is wrong with a body that was refused for ``error``."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as e:
        return [f"the body is not valid JSON: {_reason(e)}"]
    if not isinstance(body, dict):
        return [f'the body must be an object such as {{"name": "hello", "payload": {{}}}}, not {_shown(body)}']
    found = [_unknown_key(key) for key in body if key not in _FIELDS]
    if "name" not in body:
        found.append("name is missing; it must be the name of a function")
    found += [
        f"{key} must be {wanted}, not {_shown(body[key])}"
        for key, wanted in _WANTED.items()
        if key in body and not _fits(body[key], _FIELDS[key])
    ]
    found += [f"{key} is not supported by this release" for key in _NOT_YET if key in body]
    return found or [str(error)]


def _unknown_key(key: str) -> str:
    close = difflib.get_close_matches(key, _FIELDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(k for k in _FIELDS if k not in _NOT_YET)}"
    return f"unknown key {key[:_SHOWN_CHARS]!r}; {hint}"


def _fits(value: Any, wanted: Any) -> bool:
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).removeprefix("JSON is malformed: ")


def _shown(value: Any) -> str:
    """A value as its sender wrote it, shortened."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
