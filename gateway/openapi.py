"""``/openapi.json``: the OpenAPI 3.1 document, made from the table of calls, the structs of bodies and answers, and the
problems' statuses. Nothing in it is written twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

import bananas
from gateway import auth, calls, shapes
from gateway.answers import JSON
from gateway.asked import ID_HEADER as REQUEST_ID
from gateway.calls import Answer, Body, Call
from gateway.problems import MEDIA, STATUSES

#: Problems that any call may tell.
EVERYWHERE: Final = (
    *("request", "unauthorized", "forbidden", "host-not-allowed", "not-found", "method-not-allowed"),
    *("uri-too-long", "headers-too-large", "redis-unavailable", "newer-release", "internal-error"),
)
#: Problems of a call that takes a body.
_WITH_BODY: Final = ("too-large", "unsupported-media-type", "invalid-request")
_REF: Final = "#/components/schemas/{name}"
_NAME: Final = {"type": "string", "minLength": 1, "maxLength": 63}
#: The parameters in paths.
_IN_PATH: Final[dict[str, dict[str, Any]]] = {
    "job_id": {"type": "string", "format": "uuid"},
    "name": _NAME,
    "function": _NAME,
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "token_id": {"type": "string", "minLength": 1},
    "path": {"type": "string"},
    "target": {"type": "string", "minLength": 1},
}
_HEADERS: Final = {
    REQUEST_ID: "The request's own id, or the one that was sent",
    "Location": "Where the job is",
    "Bananas-Job-Id": "The job that the call was",
    "Bananas-Duplicate": "true: another call with the same key made the job",
    "Server-Timing": "Where the milliseconds went",
    "Idempotency-Key": "A second call with the same key is the first one",
}


def document(table: Iterable[Call] = calls.CALLS) -> dict[str, Any]:
    """The whole document, as JSON values."""
    table = list(table)
    schemas, components = _schemas(table)
    paths: dict[str, dict[str, Any]] = {}
    for call in table:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bananas",
            "version": bananas.__version__,
            "description": "Functions on your own machines. Times in requests are such as 10s, or numbers of seconds.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Needed beyond loopback: bn_…"}
            },
        },
    }


def _schemas(table: Iterable[Call]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """Type → its schema, for all that the calls name; and the components that those refer to."""
    kinds: list[Any] = [shapes.Problem]
    for call in table:
        kinds += [call.query, call.body.kind if call.body else None, *(a.kind for a in call.answers.values())]
    wanted = list(dict.fromkeys(kind for kind in kinds if kind is not None))
    found, components = msgspec.json.schema_components(wanted, ref_template=_REF)
    return dict(zip(wanted, found, strict=True)), components


def _operation(call: Call, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    scope = auth.SCOPES.get(call.endpoint, "admin")
    told: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{call.method.lower()}{call.path}").rstrip("_"),
        "summary": call.says,
        "tags": [call.endpoint.partition(".")[0]],
        # Without a token where the gateway asks for none.
        "security": [{}] if scope is None else [{}, {"token": []}],
        "x-scope": scope,
        "parameters": [*_in_path(call.path), *_in_query(call.query), *_in_headers(call.headers)],
        "responses": {**_answers(call, schemas), **_problems(call)},
    }
    if call.body is not None:
        told["requestBody"] = _body(call.body, schemas)
    return told


def _in_path(path: str) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", path)
    return [{"name": name, "in": "path", "required": True, "schema": _IN_PATH[name]} for name in names]


def _in_query(kind: type | None) -> list[dict[str, Any]]:
    if kind is None:
        return []
    _, components = msgspec.json.schema_components([kind], ref_template=_REF)
    properties = components[kind.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": _given(schema)} for name, schema in properties.items()]


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that may be left out is never null; one without a value counts as left out."""
    schema = {key: value for key, value in schema.items() if key != "default" or value is not None}
    if "anyOf" in schema:
        kept = [one for one in schema["anyOf"] if one != {"type": "null"}]
        schema = kept[0] if len(kept) == 1 else {**schema, "anyOf": kept}
    if schema.get("type") == "number":
        return schema
    return {"anyOf": [schema, {"const": ""}]}


def _in_headers(names: Iterable[str]) -> list[dict[str, Any]]:
    pattern = {"type": "string", "pattern": "^[!-~]([ -~]{0,198}[!-~])?$"}
    return [{"name": name, "in": "header", "description": _HEADERS[name], "schema": pattern} for name in names]


def _body(body: Body, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    schema: dict[str, Any] = {} if body.kind in (None, Any) else schemas[body.kind]
    return {"required": not body.is_optional, "content": {body.media: {"schema": schema} if schema else {}}}


def _answers(call: Call, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    return {str(status): _answer(call, answer, schemas) for status, answer in call.answers.items()}


def _answer(call: Call, answer: Answer, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    told: dict[str, Any] = {"description": call.says, "headers": _sent(answer.headers)}
    if answer.media:
        told["content"] = {answer.media: {} if answer.kind is None else {"schema": schemas[answer.kind]}}
    if answer.or_media:
        told["content"][answer.or_media] = {}
    return told


def _problems(call: Call) -> dict[str, Any]:
    """One answer for each status; its schema names the codes."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*EVERYWHERE, *(_WITH_BODY if call.body else ()), *call.problems)):
        by_status.setdefault(STATUSES[code][0], []).append(code)
    problem = {"$ref": _REF.format(name="Problem")}
    return {
        str(status): {
            "description": " / ".join(STATUSES[code][1] for code in codes),
            "headers": _sent(("Retry-After",) if status in (429, 503) else ()),
            "content": {MEDIA: {"schema": {"allOf": [problem, {"properties": {"code": {"enum": sorted(codes)}}}]}}}
            if call.has_problem_bodies
            else {JSON: {}},
        }
        for status, codes in sorted(by_status.items())
        if status not in call.answers
    }


def _sent(names: Iterable[str]) -> dict[str, Any]:
    return {
        REQUEST_ID: {"description": _HEADERS[REQUEST_ID], "required": True, "schema": {"type": "string"}},
        **{name: {"description": _HEADERS.get(name, name), "schema": {"type": "string"}} for name in names},
    }
