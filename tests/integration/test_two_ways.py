"""The direct way to the calls that are made most, beside Flask's: whatever is sent, the same comes back.

A request with an ``Upgrade`` header that means nothing goes by way of Flask, and is the same otherwise.
"""

from __future__ import annotations

import itertools
import re
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from flask import request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bananas.job import Claim, Outcome
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import LIMITS
from bananas.tokens import Tokens
from tests.integration.gateway_player import SOON_S, Player, call, playing
from tests.platform import Platform

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("untraced")]

_TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#: What is another one each time, in heads and bodies.
_CHANGING = re.compile(
    rb"(\nDate: )[^\r]*|(\nX-Request-Id: )[0-9a-f]{16}(?=\r)|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|key-of-[a-z]+"
)


def often(usual: str, *others: str) -> st.SearchStrategy[bytes]:
    """Mostly what is right, so that one wrong thing does not hide all others."""
    return st.sampled_from([usual] * (4 * len(others)) + list(others)).map(str.encode)


PATHS = often("/functions/hello/invoke", "/functions/broken/invoke") | often(
    "/jobs",
    *("/jobs/batch", "/functions/other/invoke", "/functions/Hello!/invoke", "/functions/helo/invoke"),
    *("/functions/h%65llo/invoke", "/functions/h%C3%A9/invoke", "/jobs?wait=1", "/jobs/", "//jobs", "/jobs/batch/"),
    *("/functions//invoke", "/functions/a/b/invoke", "/functions/hello/invoke/", "/functions/hello", "/fn/hello"),
)
BODIES = often(
    '{"name": "hello", "payload": {"a": [1, "ä"]}}',
    *('{"name": "hello", "delay": "1h"}', '{"name": "hello", "delay": "1 h", "nmae": 1}', '{"name": "helo"}', "", "{"),
    *('{"jobs": [{"name": "hello", "delay": 3600}, {"name": "other"}, 1]}', '{"jobs": []}', "[1]", '"\\ud800"', "nul"),
    *(
        '{"name": "hello", "delay": "1h", "unique_key": "key-of-{way}"}',
        '{"name": "hello", "callback_url": "http://10.0.0.1/"}',
    ),
    '{"name": "hello", "traceparent": "no"}',
) | st.sampled_from([b'{"name": "\xff"}', b"[" * 2000, b" " * 5000 + b"1"])
HEADERS: dict[str, st.SearchStrategy[bytes]] = {
    "Host": often("localhost", "example.com:8080", "EXAMPLE.com", "evil.com", "", "a..b", "a_b", "[::1]", "x" * 300),
    "Content-Type": often(
        *(
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON",
            "text/plain",
            "",
            "application/js",
        ),
        ";",
    ),
    "Authorization": often(
        "Bearer {all}", "Bearer {bound}", "bearer  {all} ", "Bearer {deploy}x", "Basic eDp5", "Bearer"
    ),
    "Idempotency-Key": st.sampled_from([b"key-of-{way}{n}", b"key-of-{way} {n}", b" ", b"\xe4", b"x" * 300]),
    "traceparent": st.sampled_from([_TRACE, _TRACE + b"-x", _TRACE.replace(b"00-", b"cc-"), b"no", b""]),
    "X-Request-Id": st.sampled_from([b"mine-1", b"a b", b"x" * 129, b""]),
    "Expect": st.just(b"100-continue"),
    "Origin": st.just(b"http://evil.com"),
    "Accept": st.just(b"text/html"),
}
USUAL = ("Host", "Content-Type", "Authorization")


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """Head, as a template without its end, and body; and how the body is told."""
    method = draw(often("POST", "GET", "HEAD", "PUT", "OPTIONS", "DELETE"))
    # What can be read changes while jobs run.
    path = draw(PATHS) if method not in (b"GET", b"HEAD") else b"/functions/hello/invoke"
    version = draw(often("1.1", "1.0"))
    names = [name for name in HEADERS if draw(st.integers(0, 9)) < (9 if name in USUAL else 2)]
    lines = [name.encode() + b": " + draw(HEADERS[name]) for name in names]
    if draw(st.integers(0, 9)) == 0:
        lines.append(draw(st.sampled_from(lines or [b"Accept: a"])))  # one of them twice
    body, told = draw(BODIES), draw(often("whole", "chunked", "cut", "none", "huge", "bad chunk", "negative"))
    return b"\r\n".join([method + b" " + path + b" HTTP/" + version, *lines]), body, told


def framed(body: bytes, told: bytes) -> tuple[bytes, bytes]:
    """The header that tells where a body ends, and the body as it is sent."""
    match told:
        case b"chunked":
            return b"Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (
                len(body),
                body,
            ) if body else b"0\r\n\r\n"
        case b"bad chunk":
            return b"Transfer-Encoding: chunked\r\n", b"zz\r\n" + body
        case b"cut":
            return b"Content-Length: %d\r\n" % (len(body) + 1), body
        case b"huge":
            return b"Content-Length: %d\r\n" % (LIMITS.batch_bytes + 1), b""
        case b"negative":
            return b"Content-Length: -1\r\n", b""
        case b"none":
            return b"", b""
    return b"Content-Length: %d\r\n" % len(body), body


def exchange(port: int, data: bytes, ends: bool) -> bytes:
    """Everything that is answered to one request on a connection of its own; ``ends``: nothing more will be sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=SOON_S) as connection:
        connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        pieces = []
        while piece := connection.recv(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


def steady(answer: bytes) -> list[bytes]:
    """The lines of its head in order of their names and its body, without what changes each time."""
    head, _, body = _CHANGING.sub(rb"\1\2*", answer).partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return [first, *sorted(lines), body]


class Ways:
    """One gateway that asks for tokens and knows its names, functions that end well and badly, and who calls them."""

    def __init__(self, platform: Platform, connections: Connections) -> None:
        self.port = platform.port
        tokens = Tokens(connections)
        self.tokens = {
            b"all": tokens.create("all", ("invoke",))[1].encode(),
            b"bound": tokens.create("bound", ("invoke",), ("hello", "broken"))[1].encode(),
            b"deploy": tokens.create("deploy", ("deploy",))[1].encode(),
        }
        self.statuses: Counter[str] = Counter()
        self._number = itertools.count()

    def both(self, head: bytes, body: bytes, told: bytes) -> list[list[bytes]]:
        """What the direct way and Flask's answer."""
        number = b"%d" % next(self._number)
        return [self._one(head, body, told, way, number) for way in (b"short", b"flask")]

    def _one(self, head: bytes, body: bytes, told: bytes, way: bytes, number: bytes) -> list[bytes]:
        for name, text in {**self.tokens, b"way": way, b"n": number}.items():
            head, body = (part.replace(b"{" + name + b"}", text) for part in (head, body))
        length, sent = framed(body, told)
        more = b"Upgrade: nothing\r\n" if way == b"flask" else b""
        data = head + b"\r\n" + length + more + b"Connection: close\r\n\r\n" + sent
        answer = exchange(self.port, data, told in (b"cut", b"bad chunk"))
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert answer.startswith(b"HTTP/1."), data
        if b"the request cannot be read" not in answer:  # which no call was asked for
            self.statuses[answer[9:12].decode()] += 1
        return steady(answer)

    def counted(self) -> Counter[str]:
        """How many requests the gateway says that it answered, by status; without questions for that."""
        token = self.tokens[b"deploy"].decode()
        text = call(self.port, "GET", "/metrics", Authorization=f"Bearer {token}").body.decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        found: Counter[str] = Counter()
        for sample in samples:
            if sample.name == "bananas_http_requests_total" and sample.labels["call"] != "operate.metrics":
                found[sample.labels["status"]] += int(sample.value)
        return found


@pytest.fixture
def ways(redis_url: str) -> Iterator[Ways]:
    connections = Connections(redis_url)
    player = Player(Queue(connections), Registry(connections))
    for name in ("hello", "broken", "other"):
        player.deploy(name)
    player.announce()
    with Platform(redis_url, BANANAS_HOST="0.0.0.0", BANANAS_HOSTS="example.com,localhost") as platform:
        found = Ways(platform, connections)  # its tokens are there before the gateway, which would not start
        platform.gateway()
        with playing(redis_url, _end):
            yield found
    connections.close()


def _end(player: Player, claim: Claim) -> None:
    """Each job ends with its own payload, or with an error."""
    if claim.function == "broken":
        player.settle(claim, Outcome.ERROR, error={"type": "ValueError", "message": "boom", "traceback": ""})
    else:
        player.settle(claim, result=claim.payload)


#: Each with an end that is seldom reached by chance.
ENDS = {
    "200": ("/functions/hello/invoke", b"1", b"chunked"),
    "202": ("/jobs", b'{"name": "hello"}', b"whole"),
    "207": ("/jobs/batch", b'{"jobs": [{"name": "hello", "delay": 3600}, {"name": "helo"}, 1]}', b"whole"),
    "400": ("/jobs", b'{"name": "hello"}', b"cut"),
    "413": ("/functions/hello/invoke", b"", b"huge"),
    "422": ("/jobs", b'{"name": "hello", "delay": "1 h", "nmae": 1}', b"chunked"),
    "500": ("/functions/broken/invoke", b"1", b"whole"),
}


def test_both_ways_give_the_same_answer_and_are_counted_the_same(ways):
    """Status, headers and body, but for ids, dates and times; whatever is right or wrong with the request."""

    @given(made=requests())
    @settings(max_examples=200, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def compare(made: tuple[bytes, bytes, bytes]) -> None:
        direct, flask = ways.both(*made)
        assert direct == flask

    for status, (path, body, told) in ENDS.items():
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        direct, flask = ways.both(head + b"Authorization: Bearer {all}", body, told)
        assert direct == flask
        assert direct[0][9:12].decode() == status
    compare()
    counted = ways.counted()
    assert counted == ways.statuses
    assert set(ENDS) < set(counted)


def test_the_calls_that_are_made_most_take_the_direct_way(app_client, connections):
    """Flask sees none of them, unless there is something unusual about the request."""
    app = app_client(connections, host="0.0.0.0", auth="none").application
    seen: list[str] = []
    app.before_request(lambda: seen.append(request.path))
    client = app.test_client()
    for path in ("/jobs", "/jobs/batch", "/functions/hello/invoke"):
        client.post(path)
    assert seen == []
    client.get("/jobs")
    client.post("/functions/hello/invoke", headers={"Upgrade": "nothing"})
    client.post("/jobs/batch", headers={"Host": "a..b"})  # which Flask finds wrong
    assert seen == ["/jobs", "/functions/hello/invoke", "/jobs/batch"]
