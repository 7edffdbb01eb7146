"""What went wrong in user code, as the ``error`` frame's meta. Imported only once something did."""

from __future__ import annotations

import math
import os
import traceback
from typing import Any

MESSAGE_CHARS = 4096
TRACEBACK_CHARS = 16 * 1024
_SHIM = os.path.dirname(os.path.abspath(__file__)) + os.sep
_CUT = "\n… ({} characters left out) …\n"


def describe(exc: BaseException, where: str) -> dict[str, Any]:
    """``type``, ``message`` and ``traceback`` of ``exc``, plus ``permanent`` and ``retry_after_s`` if it has them.

    ``where`` it was raised is part of some messages. Never raises, whatever user code made of its exception class.
    """
    error: dict[str, Any] = {"type": _name(exc), "message": clip(_text(exc, where), MESSAGE_CHARS)}
    try:
        error["traceback"] = clip(_traceback(exc), TRACEBACK_CHARS)
        if getattr(exc, "permanent", False):
            error["permanent"] = True
        if (seconds := _seconds(getattr(exc, "retry_after_s", None))) is not None:
            error["retry_after_s"] = seconds
    except BaseException as e:  # noqa: BLE001 - properties and __str__ of user classes may raise anything
        error["message"] = clip(f"{error['message']} (describing it failed: {_name(e)})", MESSAGE_CHARS)
    return error


def _name(exc: BaseException) -> str:
    """The real name of the class, which a metaclass may hide behind anything."""
    name: str = type.__dict__["__name__"].__get__(type(exc))
    return name


def _seconds(value: object) -> float | None:
    """A delay; None when it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        # Of the number itself, whatever a subclass says.
        seconds = float.__float__(value) if isinstance(value, float) else int.__float__(value)
    except OverflowError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def clip(text: str, limit_chars: int) -> str:
    """The text itself, or its beginning and end around a note of what is missing, ``limit_chars`` in all."""
    if len(text) <= limit_chars:
        return text
    note = _CUT.format(len(text) - limit_chars)
    room = limit_chars - len(note)
    return text[: room // 2] + note + text[len(text) - (room - room // 2) :]


def _text(exc: BaseException, where: str) -> str:
    try:
        if isinstance(exc, SystemExit):
            return f"sys.exit({exc.code!r}) was called {where}; return, or raise another exception, instead"
        return "".join([str(exc)])  # of a str itself, also when it is of a subclass
    except BaseException as e:  # noqa: BLE001 - user code's __str__
        return f"<its text is not available: __str__ raised {_name(e)}>"


def _traceback(exc: BaseException) -> str:
    """The traceback as Python prints it, without the frames of the shim and of the import machinery."""
    whole = traceback.TracebackException.from_exception(exc, compact=True)
    seen: set[int] = set()
    part: traceback.TracebackException | None
    parts = [whole]
    while parts:
        part = parts.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if _is_user_code(f.filename)])
        # What raises in a TaskGroup comes as the parts of an exception group.
        parts += [p for p in (part.__cause__, part.__context__, *(part.exceptions or ())) if p is not None]
    return "".join(whole.format())


def _is_user_code(filename: str) -> bool:
    return not filename.startswith((_SHIM, "<frozen importlib"))
