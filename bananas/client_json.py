"""JSON of the gateway's API as its client sends and reads it. Pure; called by ``bananas.client`` only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from bananas.errors import ApiError, InvalidRequest
from bananas.settings import MIB

#: The largest event of a stream: a piece of an attempt's log, escaped.
EVENT_BYTES: Final = 8 * MIB


def events(parts: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Server-sent events with JSON in them: their data, and their kind as ``event``."""
    rest = b""
    for part in parts:
        rest += part
        if len(rest) > EVENT_BYTES:
            raise ApiError(502, {"title": f"an event has more than {EVENT_BYTES // MIB} MiB"})
        *blocks, rest = rest.split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
            if (data := decode(fields.get(b"data", b""))) is not None:
                yield {"event": fields.get(b"event", b"message").decode(), **data}


def given(values: Mapping[str, Any]) -> bytes:
    """A body without what is None."""
    return msgspec.json.encode({key: value for key, value in values.items() if value is not None})


def job(job: Mapping[str, Any]) -> bytes:
    """A body of ``POST /jobs``."""
    given = {key: value for key, value in job.items() if value is not None}
    return msgspec.json.encode({**given, "payload": msgspec.Raw(encode(job.get("payload")))})


def encode(payload: Any) -> bytes:
    """A payload as JSON text; bytes are taken for that. Raises InvalidRequest."""
    if isinstance(payload, bytes):
        return payload
    try:
        return json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as e:
        raise InvalidRequest(f"the payload is not JSON: {e}") from e


def decode(raw: bytes) -> dict[str, Any] | None:
    """An object; None for anything else."""
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def problem(status: int, raw: bytes) -> dict[str, Any]:
    """The body of a problem; made up for an answer that is not from our gateway, such as a proxy's page."""
    return decode(raw) or {
        "title": f"HTTP {status}",
        "detail": f"HTTP {status}: {raw[:200].decode(errors='replace').strip()}",
    }
