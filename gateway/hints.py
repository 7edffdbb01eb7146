"""What is told about a function that is not deployed: the nearest name that is, or the next step."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from bananas.errors import UnknownFunction


def unknown_function(error: UnknownFunction, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The detail and the facts of the problem; ``names`` are deployed."""
    wanted = str(error.details.get("function", ""))
    close = difflib.get_close_matches(wanted, names, n=1)
    if close:
        hint = f"; did you mean {close[0]!r}?"
    elif names:
        hint = f"; deployed are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
    else:
        hint = "; none is: run `bananas deploy` first"
    return f"{error}{hint}", {"function": wanted, "did_you_mean": close[0] if close else None}
