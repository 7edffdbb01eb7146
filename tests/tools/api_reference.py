"""Writes docs/api-reference.md out of the OpenAPI document: ``python -m tests.tools.api_reference``.

Every call with its parameters, body, answers and problem codes, then every object that those name. What the calls mean
together is told by docs/http-api.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from gateway.openapi import EVERYWHERE, document
from gateway.problems import STATUSES

TARGET = Path(__file__).parents[2] / "docs/api-reference.md"

#: Longer ones help nobody on a page; the document has them.
_PATTERN_CHARS: Final = 48

_HEAD = """\
# Reference of the HTTP API

<!-- generated: by python -m tests.tools.api_reference out of /openapi.json -->

Every call, made from the same code as `/openapi.json`, from which clients can be generated. How the calls work together
is told in [http-api.md](http-api.md). *Scope* is what a token needs where the gateway asks for one.

Any call may answer with one of these problems, which are not named again below:

| status | code | |
|---|---|---|
"""


def text() -> str:
    """The whole page."""
    told = document()
    lines = [f"| {STATUSES[code][0]} | `{code}` | {STATUSES[code][1]} |" for code in EVERYWHERE]
    lines += ["", "| call | does |", "|---|---|", *_contents(told)]
    for path, method, call in _calls(told):
        lines += _call(path, method, call)
    lines += ["", "## Objects", "", "A `?` after a name: it may be left out; where null is allowed, that is the same."]
    for name, schema in sorted(told["components"]["schemas"].items()):
        lines += _object(name, schema)
    return _HEAD + "\n".join(lines) + "\n"


def _calls(told: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and call; of calls that differ in nothing but those, one that stands for all."""
    seen = set()
    for path, methods in told["paths"].items():
        for method, call in methods.items():
            is_any = len(methods) > 4
            name = call["summary"] if is_any else call["operationId"]
            if name not in seen:
                seen.add(name)
                longest = max((p for p in told["paths"] if p.startswith(path + "/")), key=len, default=path)
                yield (longest, "ANY", methods["post"]) if is_any else (path, method.upper(), call)


def _contents(told: dict[str, Any]) -> Iterator[str]:
    for path, method, call in _calls(told):
        anchor = "".join(c for c in f"{method} {path}".lower().replace(" ", "-") if c.isalnum() or c in "-_")
        yield f"| [`{method} {path}`](#{anchor}) | {call['summary']} |"


def _call(path: str, method: str, call: dict[str, Any]) -> Iterator[str]:
    yield from ("", f"## {method} {path}", "", f"{call['summary']}. Scope: {call['x-scope'] or 'none is needed'}.")
    if call["parameters"]:
        yield from ("", "| parameter | in | takes |", "|---|---|---|")
        for parameter in call["parameters"]:
            yield f"| `{parameter['name']}` | {parameter['in']} | {_kind(parameter['schema'])} |"
    if body := call.get("requestBody"):
        [(media, content)] = body["content"].items()
        needed = "" if body["required"] else ", may be left out"
        yield from ("", f"Body (`{media}`{needed}): {_kind(content.get('schema', {}))}")
    yield from ("", "| answer | is |", "|---|---|")
    for status, answer in sorted(call["responses"].items()):
        codes = [code for code in _codes(answer) if code not in EVERYWHERE]
        if codes:
            yield f"| {status} | {', '.join(f'`{code}`' for code in codes)} |"
        elif not _codes(answer):
            yield f"| {status} | {_content(answer)} |"


def _content(answer: dict[str, Any]) -> str:
    told = [f"{_kind(content.get('schema', {}))} (`{media}`)" for media, content in answer.get("content", {}).items()]
    return " or ".join(told) or "no body"


def _codes(answer: dict[str, Any]) -> list[str]:
    """The problem codes of an answer; empty when it is none."""
    problem = answer.get("content", {}).get("application/problem+json")
    return list(problem["schema"]["allOf"][1]["properties"]["code"]["enum"]) if problem else []


def _object(name: str, schema: dict[str, Any]) -> Iterator[str]:
    said = " ".join(schema.get("description", "").replace("``", "`").split())
    yield from ("", f"### {name}", "", said or _kind(schema))
    if "properties" not in schema:
        if said:
            yield from ("", _kind(schema))
        return
    yield from ("", "| member | is | default |", "|---|---|---|")
    for member, kind in schema["properties"].items():
        mark = "" if member in schema.get("required", ()) else "?"
        default = kind.get("default")
        shown = "" if default is None else f"`{_json(default)}`"
        yield f"| `{member}`{mark} | {_kind(kind)} | {shown} |"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{_json(schema['const'])}`"
    for several in ("anyOf", "allOf"):
        if several in schema:
            kinds = [_kind(one) for one in schema[several] if one != {"const": ""}]
            return " or ".join(dict.fromkeys(kinds))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}{_within(schema, 'minItems', 'maxItems')}"
    if kind == "object":
        below = schema.get("additionalProperties")
        return f"mapping: name → {_kind(below)}" if isinstance(below, dict) else "object"
    if kind == "string":
        pattern = schema.get("pattern", "").replace(r"(?![\s\S])", "$").replace("|", "\\|")
        length = _within(schema, "minLength", "maxLength")
        about = f"text like `{pattern}`" if 0 < len(pattern) <= _PATTERN_CHARS else "text"
        return (schema.get("format") or about) + (length and f"{length} characters")
    if kind in ("integer", "number"):
        return f"{'whole number' if kind == 'integer' else 'number'}{_within(schema, 'minimum', 'maximum')}"
    return str(kind) if kind else "any JSON"


def _within(schema: dict[str, Any], low: str, high: str) -> str:
    least, most = schema.get(low), schema.get(high)
    if most is None:
        return f", at least {least}" if least else ""
    return f", {least} to {most}" if least is not None else f", at most {most}"


if __name__ == "__main__":
    TARGET.write_text(text(), "utf-8")
    print(f"wrote {TARGET.name}")
