"""How answers are written: JSON bytes, instants, durations. Decides nothing; every route calls it.

Stored JSON (results, errors) goes into an answer as ``msgspec.Raw``, so it is never parsed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from flask import Response

from bananas.units import iso as iso

_ENCODE = msgspec.json.Encoder().encode


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """``body`` is anything that msgspec encodes; ``msgspec.Raw`` parts pass untouched."""
    return Response(_ENCODE(body), status, headers, mimetype="application/json")


def empty_answer() -> Response:
    """204: there is no body, so no type of one either."""
    answer = Response(status=204)
    del answer.headers["Content-Type"]
    return answer


def raw_json(text: bytes | None) -> msgspec.Raw | None:
    """Stored JSON text as a part of an answer; None becomes null."""
    return None if text is None else msgspec.Raw(text)
