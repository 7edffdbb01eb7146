"""Fails on purpose until a given attempt, so that retries can be watched."""

from __future__ import annotations

from typing import Any


class BadEvent(ValueError):
    """The payload is wrong; no retry will help."""

    permanent = True


def handle(event: Any, context: Any) -> dict[str, int]:
    """Raise until attempt number ``event["succeed_on"]`` (1 to 20, default 3), then return ``{"attempts": n}``."""
    succeed_on = event.get("succeed_on", 3) if isinstance(event, dict) else 3
    if isinstance(succeed_on, bool) or not isinstance(succeed_on, int) or not 1 <= succeed_on <= 20:
        raise BadEvent(f"succeed_on must be a whole number from 1 to 20, got {succeed_on!r:.60}")
    if context.attempt < succeed_on:
        raise RuntimeError(f"attempt {context.attempt} fails on purpose; attempt {succeed_on} will work")
    return {"attempts": context.attempt}
