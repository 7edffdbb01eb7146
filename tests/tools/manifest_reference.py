"""Writes the tables of docs/bananas-yaml.md out of the manifest's keys: ``python -m tests.tools.manifest_reference``.

A table stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; the rest of the page is written by hand. What
a key is, its bounds and its default come from ``bananas.manifest_schema``, as editors have them; a key that has a part
of the page to itself leads there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bananas import manifest_schema, manifest_values
from bananas.manifest_key import Key, Keys
from bananas.manifest_values import Kind, show_size
from bananas.units import show_time

TARGET = Path(__file__).parents[2] / "docs/bananas-yaml.md"

_BLOCK: Final = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->\n)", re.S)
#: What stands in the file for a kind of value; a kind that is not here and is no choice is an error.
_TAKES: Final = {
    "TIME": "time",
    "SIZE": "size",
    "COUNT": "whole number",
    "AMOUNT": "number",
    "FLAG": "`true` or `false`",
    "NAME": "name",
    "RUNTIME": "`python`, `python3.N`, `node`, `node22`",
    "HANDLER": "`module.function`",
    "FOLDER": "folder",
    "FILE": "file in the folder",
    "TARGETS": "list of `host:port`",
    "OWN_TARGETS": "list of `host:port`",
    "IMAGE": "image name",
    "ARGUMENTS": "list of texts",
    "GPUS": "whole number or `all`",
    "NAMES": "list of names",
    "SECRETS": "list of names",
    "ENV": "mapping: name → text",
    "NAMED": "mapping: name → keys",
    "RETRIES": "number or mapping",
    "SCHEDULE": "text or mapping",
    "CRON": "text",
    "ZONE": "IANA name",
    "JSON": "any value",
    "WEIGHTS": "mapping",
    "VERSION": "`1`",
    "RATE": "text or mapping",
    "LIMIT": "rate",
}
#: Keys whose part of the page, or page, has another name than they have.
_ELSEWHERE: Final = {
    "path": "#what-is-deployed",
    "min_warm": "#ready-before-the-call",
    "stems": "#ready-before-the-call",
    "network": "#open-network",
    "image": "#images-of-your-own",
    "contract": "#images-of-your-own",
    "command": "#images-of-your-own",
    "secrets": "security.md",
    "handler": "handlers.md",
    "calls_per_sandbox": "concepts.md#several-calls-in-one-sandbox",
}
_MODELS: Final[dict[str, type[Keys]]] = {
    "top": manifest_schema.Root,
    "function": manifest_schema.Function,
    "retries": manifest_schema.Retries,
    "schedule": manifest_schema.Schedule,
    "rate": manifest_schema.Rate,
    "pool": manifest_schema.Pool,
    "weights": manifest_schema.Weights,
}


def text() -> str:
    """The whole page, with its tables made anew."""
    page = TARGET.read_text("utf-8")
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", page, re.M)}
    return _BLOCK.sub(lambda block: block[1] + table(block[2], headings) + block[3], page)


def table(name: str, headings: set[str]) -> str:
    """One table, or the sentence about keys of a later release."""
    if name == "later":
        return "".join(f"- of a {kind}: {_later(_MODELS[kind])}\n" for kind in ("function", "pool"))
    lines = ["| key | takes | default | bounds and meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *_rows(_MODELS[name], headings)]) + "\n"


def _later(model: type[Keys]) -> str:
    return ", ".join(f"`{key}`" for key in sorted(model.LATER)) or "none"


def _rows(model: type[Keys], headings: set[str]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = next(part for part in field.metadata if isinstance(part, Key))
        says, _, rest = key.says.partition(" unless written.")
        meaning, _, unset = says.rpartition("; ") if says != key.says else (key.says, "", "")
        if unset and not meaning:
            meaning, unset = "", says
        default = "required" if field.is_required() else unset or _default(key)
        words = [_bounds(key), meaning.strip() + ("" if meaning.endswith(".") or not meaning else "."), rest.strip()]
        where = _ELSEWHERE.get(name) or (f"#{name}" if name in headings and model is not _MODELS.get(name) else "")
        if where:
            words.append(f"[{'Below' if where.startswith('#') else 'More'}]({where}).")
        yield f"| `{name}` | {_takes(key.kind)} | {default} | {' '.join(filter(None, words))} |".replace("<", "&lt;")


def _takes(kind: Kind) -> str:
    for name, known in vars(manifest_values).items():
        if known is kind:
            return _TAKES[name]
    choices = kind.json(manifest_values.Bounds())["anyOf"][0]["enum"]
    return ", ".join(f"`{choice}`" for choice in choices)


def _default(key: Key) -> str:
    if key.default is None:
        return "none"
    return f"`{_yaml(key.kind.show(key.default))}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(key: Key) -> str:
    bounds = key.bounds
    if bounds.max_items is not None and key.kind.is_nested:
        return f"At most {bounds.max_items}."
    show = {manifest_values.TIME: show_time, manifest_values.SIZE: show_size}.get(key.kind, "{:g}".format)
    said = bounds.say(
        lambda value: f"`{show(value)}`" if key.kind in (manifest_values.TIME, manifest_values.SIZE) else show(value)
    )
    return said[:1].upper() + said[1:] + "." if said else ""


if __name__ == "__main__":
    TARGET.write_text(text(), "utf-8")
    print(f"wrote {TARGET.name}")
