"""Takes secrets out of what an attempt printed or raised, before it leaves the runner. Pure; called by the executor.

A courtesy against accidents and no wall: code that has a secret can send it out in another form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from bananas.protocols import Secret

_MASK: Final = b"***"
#: A shorter value would be found in ordinary words.
_SHORTEST: Final = 6


class Mask:
    """The values of one attempt's secrets."""

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        self._words = sorted(_words(secret.value for secret in secrets.values()), key=len, reverse=True)

    def so_far(self, text: bytes) -> bytes:
        """The begin of what ``text`` will become, masked, when more is to come: without an end that may be the begin of
        a value.
        """
        end = len(text) - max((_begun_bytes(word, text) for word in self._words), default=0)
        # Nor between the bytes of a whole one.
        across = [
            at for word in self._words if (at := text.find(word, max(0, end - len(word) + 1), end + len(word) - 1)) >= 0
        ]
        return self.text(text[: min([end, *across])])

    def text(self, text: bytes) -> bytes:
        """The text without the values."""
        if not text:
            return text
        for word in self._words:
            text = text.replace(word, _MASK)
        return text

    def json(self, text: bytes) -> bytes:
        """JSON text without the values, and still JSON: a mask in place of all of it if need be."""
        masked = self.text(text)
        if masked != text:
            try:
                msgspec.json.decode(masked, type=msgspec.Raw)
            except msgspec.DecodeError:
                return b'"%s"' % _MASK
        return masked

    def error(self, error: dict[str, Any] | None) -> dict[str, Any] | None:
        """An error without the values in its texts."""
        if error is None or not self._words:
            return error
        return {key: self._told(value) for key, value in error.items()}

    def _told(self, value: Any) -> Any:
        return self.words(value) if isinstance(value, str) else value

    def words(self, text: str) -> str:
        """The same for characters."""
        return self.text(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


def _begun_bytes(word: bytes, text: bytes) -> int:
    """How many bytes of ``word``, but not all, the text ends with."""
    tail = text[-(len(word) - 1) :]
    at = tail.find(word[:_SHORTEST])
    while at >= 0:
        if word.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(word[:_SHORTEST], at + 1)
    return next((size for size in range(_SHORTEST - 1, 0, -1) if text.endswith(word[:size])), 0)


def _words(values: Iterable[bytes]) -> set[bytes]:
    """Whole values, and the lines of those that have several."""
    parts = {part.strip() for value in values for part in (value, *value.splitlines())}
    return {part for part in parts if len(part) >= _SHORTEST}


#: Of an attempt without secrets.
NO_MASK: Final = Mask({})
