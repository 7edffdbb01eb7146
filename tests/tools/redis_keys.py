"""Writes docs/redis-keys.md from the docstring of bananas/keys.py: ``python -m tests.tools.redis_keys``."""

from __future__ import annotations

from pathlib import Path

from bananas import keys

TARGET = Path(__file__).parents[2] / "docs" / "redis-keys.md"


def text() -> str:
    """The page."""
    body = (keys.__doc__ or "").replace("``", "`").strip()
    return f"# Keys in Redis\n\nMade from `bananas/keys.py` by `python -m tests.tools.redis_keys`.\n\n{body}\n"


if __name__ == "__main__":
    TARGET.write_text(text(), "utf-8")
