"""What a handler may import to say more than a return value: ``from bananas_sdk import Retry, Permanent, progress``.

One file of the standard library only. Every sandbox has it, so it needs no entry in ``requirements.txt``; the wheel
``bananas-faas`` has it too, for your tests. Nothing here must be used: the attributes ``retry_after_s`` and
``permanent`` mean the same on any exception.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["Retry", "Permanent", "progress"]

#: What ``progress`` takes, as JSON text.
PROGRESS_BYTES = 4096
#: The part of the sandbox that sends it; not there outside of one.
_SHIM = "_bananas_shim"
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode


class Retry(Exception):
    """Raise it to have the job tried again, ``after_s`` seconds later.

    It uses one of the function's retries, as any error does, and waits no longer than their ``cap``. Without
    ``after_s`` the wait is the usual one. Raises ValueError when that is no finite number from 0 on.

    >>> str(Retry(after_s=5))
    'try again in 5 s'
    >>> str(Retry(after_s=5, message="the mail server is busy"))
    'the mail server is busy'
    """

    def __init__(self, after_s: float | None = None, message: str = "") -> None:
        super().__init__(after_s, message)  # so that it can be pickled, as multiprocessing does
        if after_s is not None and not _is_delay(after_s):
            raise ValueError(f"after_s is a number of seconds from 0 on, not {after_s!r:.60}")
        self.retry_after_s = after_s
        self.message = message or ("try again" if after_s is None else f"try again in {after_s:g} s")

    def __str__(self) -> str:
        return self.message


class Permanent(Exception):
    """Raise it when no retry will help: the job fails at once and is a dead letter with the reason ``permanent``."""

    permanent = True


def progress(value: Any) -> None:
    """Tell how far the call is, for everyone who looks at the job's record: any JSON of at most 4 KiB.

    The record shows the latest value, such as ``{"done": 3, "of": 10}``. Call it as often as you like and from any
    thread; a sandbox sends what is new a few times per second, and the last value of all. In a child process, while
    the module is loaded and outside of a sandbox the value is checked and nothing else happens. Raises TypeError when
    it is not JSON and ValueError when it is too long.
    """
    text = encode(value)
    tell = getattr(sys.modules.get(_SHIM), "tell_progress", None)
    if tell is not None:
        tell(text)


def encode(value: Any) -> bytes:
    """JSON text as ``progress`` sends it, and the errors that it raises; for stand-ins of a sandbox."""
    try:
        text = _encode(value).encode()
    except (TypeError, ValueError, RecursionError) as e:
        raise TypeError(
            f"progress takes JSON (dict, list, str, number, bool or None), not {value!r:.60}: {e}"
        ) from None
    if len(text) > PROGRESS_BYTES:
        raise ValueError(
            f"progress takes at most {PROGRESS_BYTES} bytes of JSON, got {len(text)}; tell a summary, and keep the "
            "rest for the result"
        )
    return text


def _is_delay(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= sys.float_info.max  # not true of NaN either
