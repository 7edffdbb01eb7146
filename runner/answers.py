"""What a sandbox says is checked here before it is believed: user code may have written anything to the socket.

Pure. ``runner.conversation`` and ``runner.sandbox`` are the users.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bananas.errors import ProtocolError
from bananas.protocols import ExitInfo

#: The longest delay of a retry that is passed on; no policy's cap is longer.
_LONGEST_RETRY_S = 1e9
#: Takes any text that is JSON, and makes no objects of it.
_any_json = msgspec.json.Decoder(msgspec.Raw)


def exit_info(meta: dict[str, Any]) -> ExitInfo:
    """How the process ended, by the meta of an ``exit`` frame."""
    status, signal = meta.get("status"), meta.get("signal")
    return ExitInfo(
        status if isinstance(status, int) else None,
        signal if isinstance(signal, int) else None,
        meta.get("oom") is True,
    )


def clean_error(meta: dict[str, Any]) -> dict[str, Any]:
    """What user code may say of its error: known keys only, bounded, of the right types."""
    error: dict[str, Any] = {
        "type": str(meta.get("type") or "Error")[:200],
        "message": str(meta.get("message") or "")[:4096],
    }
    if isinstance(meta.get("traceback"), str):
        error["traceback"] = meta["traceback"][:16384]
    if meta.get("permanent") is True:
        error["permanent"] = True
    retry_after = meta.get("retry_after_s")
    if isinstance(retry_after, int | float) and not isinstance(retry_after, bool) and retry_after >= 0:
        error["retry_after_s"] = float(min(retry_after, _LONGEST_RETRY_S))
    return error


def checked_json(body: bytes, what: str, limit_bytes: int) -> bytes:
    """The bytes, if they are JSON of a bearable size; raises ProtocolError."""
    if len(body) > limit_bytes:
        raise ProtocolError(f"the sandbox sent a {what} of {len(body)} bytes, the limit is {limit_bytes}")
    try:
        body.decode("utf-8")
        _any_json.decode(body)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as e:
        raise ProtocolError(f"the sandbox sent a {what} that is not JSON, or nested too deeply: {e}") from e
    return body
