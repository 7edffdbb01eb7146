"""How structs are kept in Redis, so that neighbouring releases can work side by side while one takes the other's place.

A field that has its default is not written, and one that a release does not know is a NewerRelease that says so. So two
releases share all that both know, and only what uses something new waits for the newer one. ``FORMAT`` is for changes
that this cannot carry: keys and job fields with another meaning. It decides nothing about jobs; specs, the registry,
tokens and the health check call it. See docs/decisions/0016-neighbouring-releases.md.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from bananas import __version__, errors

#: The layout of the data that this release reads and writes (``bananas.keys`` describes it).
FORMAT: Final = 1

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def encode(value: msgspec.Struct) -> bytes:
    """Canonical JSON, sorted and without defaults: equal values have equal bytes in every release that knows them."""
    return msgspec.json.encode(_brief(value), order="sorted")


def _brief(value: Any) -> Any:
    if not isinstance(value, msgspec.Struct):
        return value
    brief = {}
    for field in msgspec.structs.fields(value):
        is_default = not field.required and getattr(value, field.name) == _default(field)
        if not is_default:
            brief[field.encode_name] = _brief(getattr(value, field.name))
    return brief


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def decode(raw: bytes, kind: type[_Struct], what: str) -> _Struct:
    """What was kept; raises NewerRelease naming ``what`` and the field that is not known here."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as e:
        raise errors.NewerRelease(
            f"{what} cannot be read by Bananas {__version__}: {e}; a newer release wrote it, so run that one here too"
        ) from e


def unknown_format(stored: bytes | None) -> str:
    """Why data of that format must be left alone by this release; empty when it need not."""
    if stored is None or (stored.isdigit() and int(stored) <= FORMAT):
        return ""
    return (
        f"its data has format {stored[:20].decode('ascii', 'replace')}, and Bananas {__version__} knows formats up to "
        f"{FORMAT}; a newer release has used it, so run that one here too, or go back to a backup of before"
    )
