"""Writes every page that is generated: ``python -m tests.tools.references``. A test keeps them in step."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from tests.tools import (
    api_reference,
    cli_reference,
    events_reference,
    manifest_reference,
    metrics_reference,
    redis_keys,
    settings_reference,
)

#: Each has the page's ``TARGET`` and its ``text()``.
PAGES: Final[tuple[ModuleType, ...]] = (
    api_reference,
    cli_reference,
    events_reference,
    manifest_reference,
    metrics_reference,
    redis_keys,
    settings_reference,
)


def main() -> None:
    """Write those that are not current."""
    for page in PAGES:
        if page.TARGET.read_text("utf-8") != (text := page.text()):
            page.TARGET.write_text(text, "utf-8")
            print(f"wrote {page.TARGET.name}")


if __name__ == "__main__":
    main()
