"""Writes docs/settings.md out of bananas/settings.py: ``python -m tests.tools.settings_reference``.

What a setting or limit is comes from the ``#:`` comment above it, its bounds and default from the code.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from bananas import settings
from bananas.units import show_time

TARGET = Path(__file__).parents[2] / "docs/settings.md"

_HEAD = """\
# Settings and limits

<!-- generated: by python -m tests.tools.settings_reference out of bananas/settings.py -->

## Settings

Environment variables of the gateway, the runner and the command line. A wrong value, or a name with `BANANAS_` that
does not exist, refuses to start and says so. An empty value counts as not set. Secrets among them are never shown.

| variable | takes | default | what |
|---|---|---|---|
"""
_LIMITS = """
## Limits

Fixed by the product; what is larger is refused or cut, as the error or the record then says.

| limit | value | of |
|---|---|---|
"""


def text() -> str:
    """The whole page."""
    return _HEAD + "\n".join(_settings()) + "\n" + _LIMITS + "\n".join(_limits()) + "\n"


def _settings() -> Iterator[str]:
    said = comments(settings.Settings)
    for setting in fields(settings.Settings):
        what, _, unset = said[setting.name].partition(" Unset: ")
        default = unset.rstrip(".") or f"`{_plain(setting.default)}`"
        if not setting.default and not unset:
            default = "none"
        takes = setting.metadata["reader"].takes
        yield f"| `{setting.metadata['env']}` | {_marked(takes)} | {_marked(default)} | {_marked(what)} |"


def _limits() -> Iterator[str]:
    said = comments(settings.Limits)
    for limit in fields(settings.Limits):
        yield f"| `{limit.name}` | {_amount(limit.name, limit.default)} | {_marked(said[limit.name])} |"


def comments(kind: type) -> dict[str, str]:
    """Field → the ``#:`` comment above it, as one line; a field without one is an error."""
    lines = inspect.getsource(kind).splitlines()
    found = {}
    for node in ast.parse(inspect.cleandoc("\n".join(lines))).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            at = node.lineno - 2
            while (line := lines[at].strip()).startswith("#:"):
                above.insert(0, line.removeprefix("#:").strip())
                at -= 1
            assert above, f"{kind.__name__}.{node.target.id} has no comment that says what it is"
            found[node.target.id] = " ".join(above)
    return found


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _amount(name: str, value: int) -> str:
    if name.endswith("_bytes"):
        for unit, size in (("MiB", settings.MIB), ("KiB", settings.KIB)):
            if value % size == 0:
                return f"{value // size} {unit}"
        return f"{value} bytes"
    if name.endswith("_s"):
        return show_time(value * 1000)
    return f"{value:,} characters" if name.endswith("_chars") else f"{value:,}"


def _marked(words: str) -> str:
    """As Markdown: code, and links to pages beside this one."""
    return re.sub(r"\bdocs/(\S+?\.md)", r"[\1](\1)", words.replace("``", "`")).replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(text(), "utf-8")
    print(f"wrote {TARGET.name}")
