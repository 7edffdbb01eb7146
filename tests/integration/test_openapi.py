"""The OpenAPI document against the app and the page for people; the ids of requests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask import Flask

from bananas.registry import Registry
from gateway import auth, calls
from gateway.problems import STATUSES
from tests.integration.gateway_player import assert_problem, send

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]


def served(app: Flask) -> set[tuple[str, str, str]]:
    """Method, path and endpoint of every route; HEAD comes with each GET."""
    return {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), rule.endpoint)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - ({"HEAD"} if rule.endpoint != "raw.call" else set())
    }


def test_every_route_is_in_the_table_and_the_reverse(client):
    """A new call cannot be forgotten, a removed one cannot stay."""
    table = {(call.method, call.path, call.endpoint) for call in calls.CALLS}
    assert served(client.application) == table
    assert len(table) == len(calls.CALLS)


def test_the_document_is_served_to_everyone(app_client, connections, player):
    """It says nothing of an installation, so it needs no token; operations have ids and scopes of their own."""
    answer = app_client(connections, host="0.0.0.0").get("/openapi.json")
    document = answer.get_json()
    assert (answer.status_code, document["openapi"], document["info"]["title"]) == (200, "3.1.0", "Bananas")
    operations = [told for methods in document["paths"].values() for told in methods.values()]
    assert len({told["operationId"] for told in operations}) == len(operations) == len(calls.CALLS)
    assert document["paths"]["/dead"]["get"]["x-scope"] == "admin"
    assert document["paths"]["/healthz"]["get"]["x-scope"] is None
    codes = document["paths"]["/jobs"]["post"]["responses"]["422"]["content"]["application/problem+json"]["schema"]
    assert codes["allOf"][1]["properties"]["code"]["enum"] == ["invalid-request", "unknown-pool"]


def test_problems_and_scopes_of_the_table_exist():
    """A code that nobody tells, or an endpoint of another name, would be a lie in the document."""
    for call in calls.CALLS:
        assert set(call.problems) <= set(STATUSES), call
    assert set(auth.SCOPES) <= {call.endpoint for call in calls.CALLS}


def test_the_page_for_people_names_the_same_paths():
    """Each call of the document is in docs/http-api.md, and each of the page in the document."""
    text = (ROOT / "docs/http-api.md").read_text("utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    told = set()
    for row in rows:
        for method, path in re.findall(r"`([A-Z]+) (/[^ `?]*)", row):
            told.add((method, re.sub(r"\{\w+\}", "{}", path)))
    table = {(call.method, re.sub(r"\{\w+\}", "{}", call.path)) for call in calls.CALLS}
    page = {(("GET" if method == "HEAD" else method), path) for method, path in told if method != "ANY"}
    whole = {path for method, path in told if method == "ANY"}
    assert page <= table
    assert {path for path in whole if path.startswith("/fn/{}")} == whole
    assert {(method, path) for method, path in table - page if not path.startswith("/fn/{}")} == set()


def test_every_answer_has_a_request_id(client, caplog):
    """The client's own if it is sane, else a new one; also in problems and in what is logged about them."""
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    made = {client.get("/healthz").headers["X-Request-Id"] for _ in range(2)}
    assert len(made) == 2
    for bad in ("a b", "x" * 129, "ü", ""):
        answer = client.get("/nothing", headers={"X-Request-Id": bad})
        assert_problem(answer, 404, "not-found")
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-Id"])
    with caplog.at_level("DEBUG", "bananas.request"):
        send(client, "POST", "/jobs", {"name": "nobody"})
    [record] = [record for record in caplog.records if record.name == "bananas.request"]
    assert re.fullmatch(r"request=[0-9a-f]{16} POST /jobs: 404", record.getMessage())


def test_what_nobody_foresaw_is_found_by_its_request_id(client, caplog, monkeypatch):
    """The same id in the answer's body, in its header and in the log."""
    monkeypatch.setattr(Registry, "pools", lambda _: 1 / 0)
    answer = client.get("/pools", headers={"X-Request-Id": "mine"})
    body = assert_problem(answer, 500, "internal-error", "see request mine")
    assert (body["request"], answer.headers["X-Request-Id"]) == ("mine", "mine")
    assert "request=mine GET /pools failed" in caplog.text
