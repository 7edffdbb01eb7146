"""Kept versions of a function as answers, and the difference between two of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from bananas.errors import InvalidRequest, VersionGone
from bananas.spec import Version
from gateway.answers import iso
from gateway.forms import SHOWN_CHARS, Form


class RollbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /functions/{name}/rollback``."""

    #: None: the one that was deployed before the current one.
    version: str | None = None


ROLLBACK: Final = Form(RollbackBody, {"version": "the id of a kept version"}, "{}")


def public(version: Version, current: str) -> dict[str, Any]:
    """One kept version; ``current`` is the id of the one that new jobs get."""
    return {
        "version": version.version,
        "current": version.version == current,
        "deployed_at": iso(version.deployed_at_ms),
        "spec": version.spec,
        "bundles": version.bundles,
        "abi": version.abi,
    }


def diff(kept: list[Version], text: str) -> dict[str, Any]:
    """What differs between the two versions named by ``a..b``: ``{"from", "to", "changes"}``.

    Raises InvalidRequest for another text, and VersionGone for versions that are not kept.
    """
    old, dots, new = text.partition("..")
    if not (old and dots and new):
        raise InvalidRequest(
            f"diff must be two versions such as 103c89f0cdda..5e7a90b1c2d3, not {text[:SHOWN_CHARS]!r}"
        )
    before, after = _flat(_one(kept, old)), _flat(_one(kept, new))
    changes = [
        {"setting": name, "from": before.get(name), "to": after.get(name)}
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    return {"from": old, "to": new, "changes": changes}


def _one(kept: list[Version], wanted: str) -> Version:
    found = next((version for version in kept if version.version == wanted), None)
    if found is None:
        names = ", ".join(version.version for version in kept)
        raise VersionGone(f"version {wanted[:SHOWN_CHARS]!r} is not kept; kept are {names}")
    return found


def _flat(version: Version) -> dict[str, Any]:
    """Dotted names of settings → values; lists are one value."""
    whole = {"spec": version.spec, "bundles": version.bundles, "abi": version.abi}
    return {name.removeprefix("spec."): value for name, value in _leaves("", msgspec.to_builtins(whole))}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}" if name else key, inner)
    else:
        yield name, value
