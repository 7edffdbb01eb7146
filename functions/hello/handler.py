"""The smallest function: greets whoever the event names."""

from __future__ import annotations

from typing import Any


class BadEvent(ValueError):
    """The payload is wrong; no retry will help."""

    permanent = True


def handle(event: Any, context: Any) -> dict[str, str]:
    """Return ``{"message": "Hello, <name>!"}``; without a name it greets the world."""
    name = event.get("name", "world") if isinstance(event, dict) else "world"
    if not isinstance(name, str) or not 1 <= len(name) <= 200:
        raise BadEvent(f"name must be a text of 1 to 200 characters, got {name!r:.60}")
    print(f"greeting {name}")
    return {"message": f"Hello, {name}!"}
