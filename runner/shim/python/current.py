"""For which call does this code run? Asked by what must tell the calls of one sandbox apart."""

from __future__ import annotations

from _contextvars import ContextVar

#: An object per call: inherited by its tasks, and by threads that are given the call's variables.
call: ContextVar[object | None] = ContextVar("bananas_call", default=None)
