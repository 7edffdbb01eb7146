"""``GET /jobs``, versions and rollback by HTTP: shapes, refusals, and what bound tokens see."""

from __future__ import annotations

import pytest

from bananas.listing import SCAN
from bananas.tokens import Tokens
from tests.integration.gateway_player import assert_problem, send

pytestmark = pytest.mark.redis


def test_jobs_are_listed_newest_first_over_pages(client, player):
    """In short, with a cursor until nothing is left."""
    ids = [send(client, "POST", "/jobs", {"name": "hello"}).get_json()["id"] for _ in range(3)]
    first = client.get("/jobs?limit=2").get_json()
    rest = client.get("/jobs", query_string={"limit": 2, "cursor": first["cursor"]}).get_json()
    assert sorted(job["id"] for job in first["jobs"] + rest["jobs"]) == sorted(ids)
    assert (len(first["jobs"]), rest["cursor"]) == (2, None)
    record = client.get(f"/jobs/{ids[0]}").get_json()
    shown = next(job for job in first["jobs"] + rest["jobs"] if job["id"] == ids[0])
    assert shown == {name: record[name] for name in shown}
    assert set(shown) == {
        *("id", "name", "version", "pool", "priority", "status", "created_at", "scheduled_for", "started_at"),
        *("finished_at", "attempts", "reason"),
    }


def test_jobs_are_filtered(client, player):
    """By status and function, also both; empty values count as not given."""
    player.deploy("other")
    mine = send(client, "POST", "/jobs", {"name": "hello", "delay": 60}).get_json()["id"]
    other = send(client, "POST", "/jobs", {"name": "other"}).get_json()["id"]

    def ids(query: str) -> list[str]:
        return [job["id"] for job in client.get(f"/jobs?{query}").get_json()["jobs"]]

    assert ids("status=scheduled") == [mine]
    assert ids("status=pending&function=") == [other]
    assert ids("function=other&status=pending") == [other]
    assert ids("function=other&status=scheduled") == ids("status=failed") == ids("function=gone") == []


def test_wrong_questions_are_told(client):
    """Every problem at once."""
    detail = f"unknown key 'state'; did you mean 'status'.*limit must be a whole number from 1 to {SCAN}"
    assert_problem(client.get("/jobs?state=x&limit=0"), 422, "invalid-request", detail)
    assert_problem(client.get("/jobs?status=dead"), 422, "invalid-request", "status must be scheduled, pending, .* or ")
    assert_problem(client.get("/jobs?cursor=x"), 422, "invalid-request", "not a cursor of this list")


def test_versions_diff_and_rollback(client, player):
    """Kept ones newest first, what differs, and back with one call."""
    [old] = client.get("/functions/hello/versions").get_json()["versions"]
    new = player.deploy("hello", timeout_ms=1000, env={"A": "1"})
    answer = client.get(f"/functions/hello/versions?diff={old['version']}..{new}").get_json()
    assert [(v["version"], v["current"]) for v in answer["versions"]] == [(new, True), (old["version"], False)]
    assert answer["versions"][0]["spec"]["timeout_ms"] == 1000
    assert answer["diff"] == {
        "from": old["version"],
        "to": new,
        "changes": [
            {"setting": "env.A", "from": None, "to": "1"},
            {"setting": "timeout_ms", "from": 30_000, "to": 1000},
        ],
    }
    back = send(client, "POST", "/functions/hello/rollback", b"")
    assert back.get_json() == {"name": "hello", "version": old["version"], "previous": new, "changed": True}
    assert client.get("/functions/hello").get_json()["version"] == old["version"]
    assert send(client, "POST", "/jobs", {"name": "hello"}).get_json()["version"] == old["version"]
    again = send(client, "POST", "/functions/hello/rollback", {"version": old["version"]}).get_json()
    assert again["changed"] is False


def test_versions_that_cannot_be(client, player):
    """What is wrong, and which there are."""
    assert_problem(client.get("/functions/helo/versions"), 404, "unknown-function", "mean 'hello'")
    assert_problem(send(client, "POST", "/functions/helo/rollback", {}), 404, "unknown-function")
    assert_problem(client.get("/functions/hello/versions?diff=a"), 422, "invalid-request", "diff must be two versions")
    assert_problem(client.get("/functions/hello/versions?diff=a..b"), 409, "version-gone", "'a' is not kept; kept are")
    assert_problem(send(client, "POST", "/functions/hello/rollback", {}), 409, "version-gone", "from before")
    assert_problem(send(client, "POST", "/functions/hello/rollback", {"version": "x"}), 409, "version-gone")
    wrong = send(client, "POST", "/functions/hello/rollback", {"version": 1, "to": 2})
    assert_problem(wrong, 422, "invalid-request", "unknown key 'to'.*version must be the id of a kept version")


def test_bound_tokens_see_their_functions_only(app_client, connections, player):
    """In lists, versions and rollbacks."""
    player.deploy("other")
    client = app_client(connections, host="0.0.0.0")
    made = Tokens(connections)
    admin, bound, caller = (
        {"Authorization": f"Bearer {made.create('t', (scope,), names)[1]}"}
        for scope, names in (("admin", ()), ("deploy", ("hello",)), ("invoke", ()))
    )
    ids = {
        name: client.post("/jobs", json={"name": name}, headers=admin).get_json()["id"] for name in ("hello", "other")
    }
    for query in ("", "?status=pending"):
        shown = client.get(f"/jobs{query}", headers=bound).get_json()["jobs"]
        assert [job["id"] for job in shown] == [ids["hello"]]
        assert len(client.get(f"/jobs{query}", headers=caller).get_json()["jobs"]) == 2
    assert_problem(client.get("/jobs?function=other", headers=bound), 403, "forbidden", "may not touch 'other'")
    assert_problem(client.get("/functions/other/versions", headers=bound), 403, "forbidden")
    assert_problem(client.post("/functions/other/rollback", json={}, headers=bound), 403, "forbidden")
    assert_problem(client.post("/functions/hello/rollback", json={}, headers=caller), 403, "forbidden", "scope deploy")
    assert client.get("/functions/hello/versions", headers=bound).status_code == 200
