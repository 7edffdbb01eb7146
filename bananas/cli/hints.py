"""What to do about a handler's error, for those that people meet in their first days with sandboxes. Pure.

An error is what the record of a job has: ``{"type", "message"}`` of Python's or Node's. Called where commands tell of
one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

#: What ``type: message`` of an error looks like → what to do; the first that fits is told.
_HINTS: Final = tuple(
    (re.compile(pattern), says)
    for pattern, says in (
        (
            r"^ModuleNotFoundError: No module named '(?P<what>[^']+)'"
            r"|Cannot find (?:module|package) '(?P<name>[^'/.]+)",
            "put {what} into the function's requirements (package.json for Node), or its files into its folder",
        ),
        (
            r"name resolution|Name or service not known|Network is unreachable|EAI_AGAIN|ENOTFOUND|ENETUNREACH",
            "code reaches no network but the egress of its pool; write egress: [host:port] there in bananas.yaml",
        ),
        (r"Read-only file system|EROFS", "only /tmp can be written to; its size is tmp of the pool"),
        (
            r"^FileNotFoundError: .*: '[^/'][^']*'$|ENOENT.*'[^/'][^']*'$",
            "files of the function are beside its handler: Path(__file__).parent, or __dirname in Node",
        ),
        (r"^AttributeError: the handler is", "handler in bananas.yaml is module.function, such as handler.handle"),
        (r"^TypeError: \w+\(\) takes .* positional arguments? but 2 were given", "a handler takes (event, context)"),
        (r"^Timeout: ", "raise the function's timeout, or have it do less"),
        (r"^(MemoryError|OutOfMemory): ", "raise the memory of the function's pool, or have it use less"),
    )
)


def hint(error: Mapping[str, Any] | None) -> str | None:
    """What to do about an error, or None.

    >>> hint({"type": "ModuleNotFoundError", "message": "No module named 'requests'"}).split(",")[0]
    "put requests into the function's requirements (package.json for Node)"
    """
    text = f"{(error or {}).get('type')}: {(error or {}).get('message')}"
    for pattern, says in _HINTS:
        if match := pattern.search(text):
            found = match.groupdict()
            return says.format(what=found.get("what") or found.get("name"))
    return None
