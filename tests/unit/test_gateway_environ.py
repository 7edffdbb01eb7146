"""What a request looks like to the gateway, against gunicorn's own way to say it."""

from __future__ import annotations

import socket

import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser, wsgi
from hypothesis import given, settings
from hypothesis import strategies as st

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
