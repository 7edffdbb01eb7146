"""API tokens: what each scope may do, what is refused, and what is kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from bananas import errors, keys, tokens
from bananas.redis_client import Connections
from bananas.settings import Settings
from bananas.tokens import Tokens
from gateway import auth, listen
from tests.integration.gateway_player import Player, assert_problem, send

pytestmark = pytest.mark.redis


@pytest.fixture
def made(connections: Connections) -> Tokens:
    return Tokens(connections)


@pytest.fixture
def open_client(app_client: Callable[..., FlaskClient], connections: Connections, player: Player) -> FlaskClient:
    """Of a gateway that serves beyond loopback."""
    player.deploy("other")
    return app_client(connections, host="0.0.0.0")


def with_token(client: FlaskClient, text: str) -> FlaskClient:
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {text}"
    return client


def status(client: FlaskClient, method: str, path: str, body: Any = None) -> int:
    return (
        send(client, method, path, body).status_code
        if body is not None
        else client.open(path, method=method).status_code
    )


CALLS = [
    ("POST", "/jobs", {"name": "hello"}, "invoke"),
    ("POST", "/jobs/batch", {"jobs": [{"name": "hello"}]}, "invoke"),
    ("GET", "/functions", None, "invoke"),
    ("PUT", "/pools/gpu", {"concurrency": 1}, "deploy"),
    ("GET", "/runtimes", None, "deploy"),
    ("GET", "/metrics", None, "deploy"),
    ("GET", "/dead", None, "admin"),
    ("GET", "/secrets", None, "admin"),
    ("GET", "/tokens", None, "admin"),
    ("GET", "/schedules", None, "admin"),
]


@pytest.mark.parametrize(("method", "path", "body", "needed"), CALLS, ids=lambda v: str(v)[:20])
@pytest.mark.parametrize("scope", tokens.SCOPES)
def test_each_scope_may_do_what_the_table_says_and_no_more(open_client, made, method, path, body, needed, scope):
    """admin holds deploy, deploy holds invoke."""
    order = ["invoke", "deploy", "admin"]
    client = with_token(open_client, made.create("t", (scope,))[1])
    answered = status(client, method, path, body)
    if order.index(scope) >= order.index(needed):
        assert answered < 300
    else:
        assert answered == 403


def test_a_call_that_nobody_put_into_the_table_needs_admin(app_client, connections):
    """A new route is closed until somebody thinks about it."""
    app = app_client(connections).application
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules()}
    assert set(auth.SCOPES) <= endpoints
    assert {endpoint for endpoint, scope in auth.SCOPES.items() if scope is None} == {
        "operate.healthz",
        "operate.readyz",
        "openapi.document",
    }


def test_without_a_valid_token_nothing_is_told(open_client, made):
    """Missing, wrong, expired, taken back: 401 with the next step; health stays open."""
    assert_problem(open_client.get("/functions"), 401, "unauthorized", "bananas token create")
    assert open_client.get("/functions").headers["WWW-Authenticate"] == "Bearer"
    assert open_client.get("/healthz").status_code == 200
    token, text = made.create("t", ("admin",))
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    for bad in ("", "bn_x", wrong, f"bn_{'0' * 12}_{text.rpartition('_')[2]}"):
        assert_problem(with_token(open_client, bad).get("/functions"), 401, "unauthorized")
    assert with_token(open_client, text).get("/functions").status_code == 200
    old = made.create("t", ("admin",), ttl_s=-1)[1]
    assert_problem(with_token(open_client, old).get("/functions"), 401, "unauthorized", "has expired")
    assert made.remove(token.id)
    assert not made.remove(token.id)


def test_a_removed_token_is_refused_within_seconds(connections, made, monkeypatch):
    """A gateway process believes what it read only for a moment."""
    here = Tokens(connections)
    token, text = made.create("t", ("invoke",))
    assert here.check(text) == token
    made.remove(token.id)
    now = tokens.time.monotonic() + tokens.CACHE_S
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now)
    with pytest.raises(errors.Unauthorized):
        here.check(text)


def test_a_token_bound_to_functions_reaches_no_other(open_client, made, player):
    """Neither to submit, look, read, cancel, list nor by a batch."""
    other = player.submit("other").id if hasattr(player, "submit") else None
    if other is None:
        admin = with_token(open_client, made.create("a", ("admin",))[1])
        other = send(admin, "POST", "/jobs", {"name": "other"}).get_json()["id"]
    client = with_token(open_client, made.create("t", ("deploy",), ("hello",))[1])
    mine = send(client, "POST", "/jobs", {"name": "hello"}).get_json()["id"]
    assert client.get(f"/jobs/{mine}").status_code == 200
    assert_problem(send(client, "POST", "/jobs", {"name": "other"}), 403, "forbidden", "may not touch 'other'")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/logs"), ("GET", "/payload")):
        assert_problem(client.open(f"/jobs/{other}{path}", method=method), 403, "forbidden")
    assert_problem(client.get("/functions/other"), 403, "forbidden")
    assert_problem(client.delete("/functions/other"), 403, "forbidden")
    assert [f["name"] for f in client.get("/functions").get_json()["functions"]] == ["hello"]
    assert_problem(client.get("/metrics"), 403, "forbidden", "concerns others")
    assert client.get("/runtimes").status_code == 200
    batch = send(client, "POST", "/jobs/batch", {"jobs": [{"name": "other"}, {"name": "hello"}]})
    assert batch.status_code == 207
    assert [("error" in item) for item in batch.get_json()["jobs"]] == [True, False]


def test_tokens_by_http(open_client, made, connections):
    """The text is in one answer only, and nowhere in Redis."""
    client = with_token(open_client, made.create("boss", ("admin",))[1])
    answer = send(client, "POST", "/tokens", {"name": "ci", "scopes": ["deploy"], "expires_in": "30d"})
    assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
    body = answer.get_json()
    assert body["expires_at"] > body["created_at"]
    listed = client.get("/tokens").get_json()["tokens"]
    assert [t["name"] for t in listed] == ["boss", "ci"]
    secret = body["token"].split("_", 2)[2]
    assert secret not in client.get("/tokens").text
    assert all(secret.encode() not in value for value in connections.commands.hvals(keys.TOKENS))
    assert client.delete(f"/tokens/{body['id']}").status_code == 204
    assert_problem(client.delete(f"/tokens/{body['id']}"), 404, "unknown-token")
    for wrong, said in (
        ({"name": "x", "scopes": []}, "scopes must be a list of at least one of invoke, deploy, admin"),
        ({"scope": ["admin"]}, "unknown key 'scope'; did you mean 'scopes'.*; name is missing"),
        ({"name": "x", "scopes": ["root"], "burst": "1"}, "scopes must be .*; burst must be a whole number"),
        ({"name": "", "scopes": ["admin"]}, "not a valid token"),
        ({"name": "x", "scopes": ["admin"], "expires_in": "soon"}, "not a valid token.*soon"),
    ):
        assert_problem(send(client, "POST", "/tokens", wrong), 422, "invalid-request", said)


def test_what_changes_the_installation_is_in_the_audit_log(open_client, made, caplog):
    """Who and what, never the token."""
    token, text = made.create("ci", ("deploy",))
    with caplog.at_level(logging.INFO, "bananas.audit"):
        send(with_token(open_client, text), "PUT", "/pools/gpu", {"concurrency": 1})
        open_client.get("/runtimes")
    [line] = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(rf"token={token.id} name='ci' PUT /pools/gpu request=[0-9a-f]{{16}}", line)
    assert text not in caplog.text


def test_beyond_loopback_a_gateway_needs_a_token_to_start(redis_url, made):
    """On loopback it needs none; BANANAS_AUTH=none is the one explicit way out."""
    settings = Settings(host="0.0.0.0", redis_url=redis_url)
    with pytest.raises(errors.ConfigError, match=r"no API token; make one with `bananas token create"):
        listen.check_exposure(settings)
    listen.check_exposure(Settings(redis_url=redis_url))
    listen.check_exposure(Settings(host="0.0.0.0", auth="none", redis_url=redis_url))
    made.create("first", ("admin",))
    listen.check_exposure(settings)
