"""``ANY /fn/{name}/{path}``: the request as an event, the handler's answer as HTTP, and who is refused."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient

from bananas.job import Outcome
from bananas.settings import LIMITS
from bananas.tokens import Tokens
from tests.integration.gateway_player import Player, assert_problem
from tests.platform import Platform

pytestmark = pytest.mark.redis


@dataclass(frozen=True)
class Got:
    """An answer, as read from the wire."""

    status_code: int
    headers: http.client.HTTPMessage
    data: bytes

    @property
    def mimetype(self) -> str:
        """Without parameters."""
        return self.headers.get_content_type()


Ask = Callable[..., Got]


@pytest.fixture
def ask(platform: Platform) -> Ask:
    """Sends a request exactly as it is given."""

    def send(method: str, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", platform.port, timeout=30)
        try:
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return Got(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    return send


@pytest.fixture
def serve(platform: Platform, player: Player) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Plays the handler of the next call: it returns ``told``, or ends with ``outcome``. Gives the events it saw."""
    player = Player(platform.queue, platform.registry)
    player.announce()
    seen: list[dict[str, Any]] = []
    pool = ThreadPoolExecutor(1)

    def start(told: Any = None, outcome: Outcome = Outcome.OK, error: Any = None) -> list[dict[str, Any]]:
        def run() -> None:
            claim = player.claim()
            seen.append(json.loads(claim.payload))
            player.settle(claim, outcome, json.dumps(told).encode(), error)

        pool.submit(run)
        return seen

    yield start
    pool.shutdown()


def test_a_handler_sees_method_path_query_headers_and_body(ask, serve):
    """In AWS's shape of version 2.0, with short names on top."""
    seen = serve({"ok": True})
    answer = ask(
        "POST",
        "/fn/hello/users/7%20x?a=1&a=2&b=%C3%A9",
        "grüße".encode(),
        {
            "Content-Type": "text/plain; charset=utf-8",
            "X-Mine": "yes",
            "Authorization": "Bearer secret",
            "Cookie": "sid=1",
            "Connection": "X-Hop",
            "X-Hop": "1",
        },
    )
    assert (answer.status_code, answer.data) == (200, b'{"ok": true}')
    assert answer.headers["Bananas-Job-Id"]
    [event] = seen
    assert (event["method"], event["path"], event["rawPath"]) == ("POST", "/users/7 x", "/users/7%20x")
    assert event["query"] == event["queryStringParameters"] == {"a": "1,2", "b": "é"}
    assert (event["body"], event["isBase64Encoded"], event["version"]) == ("grüße", False, "2.0")
    assert event["headers"]["x-mine"] == "yes"
    assert not {"authorization", "cookie", "x-hop", "connection"} & set(event["headers"])
    assert event["requestContext"]["http"]["method"] == "POST"


def test_bytes_pass_both_ways(ask, serve):
    """What is no text goes as base64, in and out."""
    data = bytes(range(256)) * 8
    seen = serve(
        {
            "status": 201,
            "headers": {"Content-Type": "image/x-own"},
            "body": base64.b64encode(data).decode(),
            "isBase64": True,
        }
    )
    answer = ask("PUT", "/fn/hello", data, {"Content-Type": "application/octet-stream"})
    assert base64.b64decode(seen[0]["body"]) == data
    assert seen[0]["isBase64Encoded"]
    assert (answer.status_code, answer.data, answer.headers["Content-Type"]) == (201, data, "image/x-own")
    assert seen[0]["path"] == "/"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_reaches_the_handler(ask, serve, method):
    """OPTIONS too: nothing is answered in its place."""
    seen = serve({"statusCode": 202, "body": "hi"})
    answer = ask(method, "/fn/hello//a/")
    assert answer.status_code == 202
    assert (seen[0]["method"], seen[0]["path"]) == (method, "//a/")
    assert answer.data == (b"" if method == "HEAD" else b"hi")


@pytest.mark.parametrize(
    ("told", "status", "body", "media"),
    [
        ([1, 2], 200, b"[1, 2]", "application/json"),
        ("text", 200, b'"text"', "application/json"),
        (None, 200, b"null", "application/json"),
        ({}, 200, b"{}", "application/json"),
        ({"status": "ok"}, 200, b'{"status": "ok"}', "application/json"),
        ({"status": 404}, 404, b"", None),
        ({"body": {"a": 1}}, 200, b'{"a":1}', "application/json"),
        ({"body": "<p>", "headers": {"content-type": "text/html"}}, 200, b"<p>", "text/html"),
        ({"status": 204, "body": "ignored"}, 204, b"", "text/plain; charset=utf-8"),
        ({"status": 200, "other": 1}, 200, b'{"status": 200, "other": 1}', "application/json"),
    ],
)
def test_what_a_handler_returns_is_an_answer_or_json(ask, serve, told, status, body, media):
    """An object is an answer when it has no other keys and a status that is a number."""
    serve(told)
    answer = ask("GET", "/fn/hello/")
    assert (answer.status_code, answer.data, answer.headers.get("Content-Type")) == (status, body, media)


def test_headers_of_the_whole_host_are_left_out_and_told(ask, serve):
    """A function's page stays in a sandbox of the browser and sets no cookies for its neighbours."""
    serve(
        {
            "headers": {
                "Set-Cookie": "a=1",
                "Content-Length": "7",
                "X-Mine": ["1", "2"],
                "Content-Security-Policy": "img-src *",
            },
            "body": "x",
        }
    )
    answer = ask("GET", "/fn/hello/page")
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Bananas-Dropped-Headers"] == "content-length, set-cookie"
    assert answer.headers.get_all("X-Mine") == ["1", "2"]
    assert [policy[:7] for policy in answer.headers.get_all("Content-Security-Policy")] == ["img-src", "sandbox"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "told",
    [
        {"status": 99},
        {"status": 600},
        {"headers": {"X A": "1"}},
        {"headers": {"X-A": "1\r\nX-B: 2"}},
        {"headers": {"X-A": None}},
        {"headers": ["x"]},
        {"body": "!", "isBase64": True},
        {"body": 1, "isBase64": True},
    ],
)
def test_an_answer_that_cannot_be_sent_is_a_502_with_the_reason(ask, serve, told):
    """Nothing of it gets out."""
    serve(told)
    body = assert_problem(ask("GET", "/fn/hello/"), 502, "bad-answer", "'hello' returned")
    assert body["job"]


def test_failures_are_problems_as_for_every_call(ask, serve):
    """The handler's error is in them."""
    serve(outcome=Outcome.ERROR, error={"type": "ValueError", "message": "boom"})
    assert_problem(ask("GET", "/fn/hello/"), 500, "handler-error", "ValueError: boom")
    assert_problem(ask("GET", "/fn/nobody/"), 404, "unknown-function")


def test_a_request_is_bounded_as_an_event(client):
    """Base64 counts."""
    large = b"\xff" * (LIMITS.payload_bytes - 1000)
    answer = client.post("/fn/hello", data=large, content_type="application/octet-stream")
    assert_problem(answer, 413, "too-large", "request as an event")
    assert_problem(client.post("/fn/hello", data=b"x" * (LIMITS.payload_bytes + 1)), 413, "too-large")


@pytest.mark.parametrize(
    ("method", "headers", "is_served"),
    [
        ("POST", {"Origin": "https://evil.example"}, False),
        ("POST", {"Origin": "null"}, False),
        ("POST", {"Origin": "http://localhost:3000"}, False),
        ("POST", {"Origin": "http://localhost"}, True),
        ("GET", {"Origin": "https://evil.example"}, False),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, False),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ("POST", {"Sec-Fetch-Site": "same-origin"}, True),
        ("POST", {}, True),
    ],
)
def test_another_sites_page_cannot_call_functions(client, method, headers, is_served):
    """Though any media type is taken: the browser's own word counts. Following a link is not calling."""
    answer = client.open("/fn/hello/", method=method, headers=headers)
    assert_problem(answer, *((503, "no-live-runner") if is_served else (403, "origin-not-allowed")))


def test_with_tokens_a_bound_one_calls_its_functions_only(app_client, connections, player):
    """A token is asked for, and then the origin says nothing."""
    player.deploy("other")
    client: FlaskClient = app_client(connections, host="0.0.0.0")
    assert_problem(client.get("/fn/hello/"), 401, "unauthorized")
    bearer = {"Authorization": f"Bearer {Tokens(connections).create('t', ('invoke',), ('hello',))[1]}"}
    answer = client.post("/fn/hello/", headers={**bearer, "Origin": "https://app.example"})
    assert_problem(answer, 503, "no-live-runner")
    assert_problem(client.get("/fn/other/", headers=bearer), 403, "forbidden", "other")
