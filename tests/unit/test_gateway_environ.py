"""What a request looks like to the gateway, against gunicorn's own way to say it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent.socket
import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser, wsgi
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import reading
from gateway.environ import environ_of
from gateway.reading import Requests

CLIENT, SERVER = ("192.0.2.1", 40000), ("127.0.0.1", 8080)
NAMES = st.sampled_from(["Host", "Accept", "accept", "X-Some-Thing", "X_Some_Thing", "Script-Name", "Forwarded"])
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
HEADERS = st.lists(st.tuples(NAMES | st.just("Content-Type"), VALUES), max_size=6)
PATHS = st.sampled_from(["/", "/jobs", "/jobs?wait=1&a=%20", "/fn/h%65llo//%C3%A9/%2F", "/a%zz", "//a?", "/x#y"])


@given(headers=HEADERS, path=PATHS, version=st.sampled_from(["1.0", "1.1"]), body=st.sampled_from([b"", b"1234"]))
@settings(max_examples=200)
@pytest.mark.parametrize("parser", ["auto", "python"])
def test_the_environment_is_gunicorns(parser, headers, path, version, body):
    """Whatever was sent; apart from what nobody here asks for."""
    once = {name: value for name, value in headers if name in ("Host", "Content-Type")}
    lines = [*once.items(), *[pair for pair in headers if pair[0] not in once], ("Content-Length", str(len(body)))]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    data = f"POST {path} HTTP/{version}\r\n{head}\r\n".encode() + body
    config = Config()
    config.set("http_parser", parser)
    ours, theirs = [next(kind(config, iter([data]), CLIENT)) for kind in (Requests, RequestParser)]
    with socket.socket() as sock:
        _, expected = wsgi.create(theirs, sock, CLIENT, SERVER, config)
        found = environ_of(ours, sock, CLIENT, SERVER, config)
    assert found.pop("wsgi.input").read() == expected.pop("wsgi.input").read() == body
    assert found.pop("wsgi.errors")
    del expected["wsgi.errors"], expected["wsgi.early_hints"]
    assert found == {**expected, "wsgi.multithread": True}


def test_a_client_that_waits_for_it_is_told_to_send_its_body():
    """As curl does with a large one."""
    data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    ours, client = socket.socketpair()
    with ours, client:
        request = next(Requests(Config(), iter([data]), CLIENT))
        environ_of(request, ours, CLIENT, SERVER, Config())
        assert client.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    "body", ["Content-Length: 4\r\n\r\n1234", "Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("taken", [0, 2, 4, 9])
def test_the_next_request_begins_behind_the_body_of_the_last_one(body, taken):
    """However much of it was taken."""
    data = f"POST /first HTTP/1.1\r\nHost: a\r\n{body}GET /next HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    requests = Requests(Config(), iter([data[n : n + 30] for n in range(0, len(data), 30)]), CLIENT)
    assert next(requests).body.read(taken) == b"1234"[:taken]
    assert next(requests).path == "/next"


def chunked(rest: bytes) -> bytes:
    return b"POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + rest


@pytest.mark.parametrize(
    "pieces",
    [
        [
            b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234",
            b"",
            b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
        [chunked(b"4\r\n1234\r\n"), b"", b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"],
        [chunked(b"zz\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n")],
    ],
)
def test_behind_a_body_without_an_end_there_is_no_next_request(pieces):
    """A connection whose receiving side was ended by us may bring more bytes; they are the rest of the body."""
    requests = Requests(Config(), iter(pieces), CLIENT)
    assert next(requests).path == "/first"
    assert list(requests) == []


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    """A connection whose client sent the head of a request with a body, and nothing since."""
    monkeypatch.setattr(reading, "BODY_S", 0.05)
    ours, client = gevent.socket.socketpair()
    with ours, client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n12")
        yield Requests(Config(), ours, CLIENT)


def test_a_body_that_does_not_come_ends_the_connection(slow):
    """Nobody keeps a place by promising to send something."""
    request = next(slow)
    with pytest.raises(TimeoutError, match="did not come within"):
        request.body.read(4)
    assert list(slow) == []


def test_a_body_that_nobody_wants_is_not_waited_for_long(slow, monkeypatch):
    """Nor after its request was refused."""
    monkeypatch.setattr(reading, "BODY_S", 60.0)
    monkeypatch.setattr(reading, "REST_S", 0.05)
    assert len(list(slow)) == 1


@pytest.mark.parametrize("is_wanted", [True, False])
@pytest.mark.parametrize("frame", [b"Content-Length: 60000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_long_body_leaves_the_others_their_turn(frame, is_wanted):
    """However fast it comes, and in however many chunks."""
    sent = 10_000 * b"1\r\na\r\n" + b"0\r\n\r\n" if b"chunked" in frame else 60_000 * b"a"
    data = b"POST / HTTP/1.1\r\nHost: a\r\n" + frame + sent
    requests = Requests(Config(), iter([data, b""]), CLIENT)
    body = next(requests).body
    has_ended, turns = [False], []
    other = gevent.spawn(lambda: turns.append(has_ended[0]))
    assert not is_wanted or len(body.read(10_000)) == 10_000
    assert list(requests) == []
    has_ended[0] = True
    other.join()
    assert turns == [False]
