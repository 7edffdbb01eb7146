"""Callbacks on the wire: which URLs are possible, and what a receiver's check lets through."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bananas import webhooks
from bananas.errors import BadSignature
from runner import outbound, webhook
from runner.webhook import Answer, Forbidden, Sender, Unanswered

KEYS = (b"n" * 32, b"o" * 32)
BODY = b'{"type": "job.completed"}'
NOW_S = 1_764_000_000


def signed() -> dict[str, str]:
    return webhooks.sign(KEYS, "job.1", BODY, NOW_S)


def test_each_key_of_a_sender_checks_at_the_receiver():
    """So a key can be replaced without a pause; header names come in any case."""
    headers = {name.title(): value for name, value in signed().items()}
    for key in KEYS:
        assert webhooks.verify(webhooks.secret_text(key), headers, BODY, now_s=NOW_S + 299) == "job.1"


def test_the_signature_is_that_of_standard_webhooks():
    """Its libraries can check our callbacks: HMAC-SHA256 of id, time and body, in base64."""
    digest = hmac.new(KEYS[0], f"job.1.{NOW_S}.".encode() + BODY, hashlib.sha256).digest()
    assert signed()["webhook-signature"].split()[0] == "v1," + base64.b64encode(digest).decode()


def test_the_recipe_of_the_documentation_says_the_same(monkeypatch):
    """It needs the standard library only."""
    page = (Path(__file__).parents[2] / "docs/http-api.md").read_text("utf-8")
    recipe: dict[str, Any] = {}
    exec(re.findall(r"```python\n(import base64.*?)```", page, re.S)[0], recipe)
    monkeypatch.setattr(recipe["time"], "time", lambda: NOW_S + 10)
    secret = webhooks.secret_text(KEYS[1])
    assert recipe["is_genuine"](secret, signed(), BODY)
    assert not recipe["is_genuine"](secret, signed(), BODY + b" ")
    monkeypatch.setattr(recipe["time"], "time", lambda: NOW_S + 301)
    assert not recipe["is_genuine"](secret, signed(), BODY)


@pytest.mark.parametrize(
    ("change", "body", "now_s", "said"),
    [
        ({}, BODY + b" ", NOW_S, "no signature"),
        ({"webhook-id": "job.2"}, BODY, NOW_S, "no signature"),
        ({"webhook-timestamp": str(NOW_S + 1)}, BODY, NOW_S, "no signature"),
        ({"webhook-signature": ""}, BODY, NOW_S, "no signature"),
        ({"webhook-signature": "v1,é v2"}, BODY, NOW_S, "no signature"),
        ({}, BODY, NOW_S + 301, "301 s off"),
        ({}, BODY, NOW_S - 301, "301 s off"),
        ({"webhook-timestamp": "now"}, BODY, NOW_S, "not valid"),
        ({"webhook-timestamp": ""}, BODY, NOW_S, "not valid"),
    ],
)
def test_what_was_changed_or_kept_too_long_is_refused(change, body, now_s, said):
    """With the reason."""
    with pytest.raises(BadSignature, match=said):
        webhooks.verify(webhooks.secret_text(KEYS[0]), {**signed(), **change}, body, now_s=now_s)


def test_another_secret_or_none_is_refused():
    """Also one that is no base64."""
    for secret, said in ((webhooks.secret_text(b"x" * 32), "no signature"), ("whsec_é", "not valid")):
        with pytest.raises(BadSignature, match=said):
            webhooks.verify(secret, signed(), BODY, now_s=NOW_S)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("https://example.com", (True, "example.com", 443, "/")),
        ("http://Example.com:8000/a/b?c=d&e", (False, "example.com", 8000, "/a/b?c=d&e")),
        ("http://[2001:db8::1]/x", (False, "2001:db8::1", 80, "/x")),
        ("http://hook_1.local/", (False, "hook_1.local", 80, "/")),
    ],
)
def test_a_url_is_taken_apart(text, parts):
    """As a sender needs it."""
    url = webhooks.parse_url(text)
    assert (url.is_tls, url.host, url.port, url.target) == parts


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        yield listener


def sender(listener: socket.socket, **more: object) -> tuple[Sender, str]:
    place = f"127.0.0.1:{listener.getsockname()[1]}"
    return Sender([place], **more), f"http://{place}/hook?x=1"


def answering(listener: socket.socket, *pieces: bytes) -> list[bytes]:
    """Take one connection in a thread, keep what comes, and answer with some pieces."""
    got: list[bytes] = []

    def serve() -> None:
        with listener.accept()[0] as conn:
            while b"{}" not in b"".join(got):
                got.append(conn.recv(4096))
            for piece in pieces:
                try:
                    conn.sendall(piece)
                except OSError:  # it has heard enough
                    return

    threading.Thread(target=serve, daemon=True).start()
    return got


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], Answer(204)),
        ([b"HTTP/1.1 2", b"00 OK\r\nContent-Length: 5\r\n\r\nhel"], Answer(200)),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n\r\n"], Answer(201)),
        ([b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.0 503 Busy\r\nRetry-After: 7\r\n\r\n"], Answer(503, 7)),
        ([b"HTTP/1.1 503 Busy\r\nRetry-After: 99999\r\n\r\n"], Answer(503, 3600)),
    ],
)
def test_of_an_answer_the_head_counts(listener, pieces, answer):
    """However it comes in pieces; its body is not read."""
    got = answering(listener, *pieces)
    post, url = sender(listener)
    assert post.post(url, {"webhook-id": "1"}, b"{}") == answer
    head = b"".join(got).split(b"\r\n")
    assert (head[0], b"webhook-id: 1" in head) == (b"POST /hook?x=1 HTTP/1.1", True)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "SSH"),
        ([b""], "closed without an answer"),
        ([b"HTTP/1.1 200 OK\r\nX: "] + [b"x" * 4096] * 10, "more than 16384 bytes"),
    ],
)
def test_what_is_no_answer_is_told(listener, pieces, said):
    """Nobody can make a sender read for ever."""
    answering(listener, *pieces)
    post, url = sender(listener)
    with pytest.raises(Unanswered, match=said):
        post.post(url, {}, b"{}")


def test_a_receiver_that_says_nothing_is_left(listener, monkeypatch):
    """One deadline holds for everything together."""
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.3)
    post, url = sender(listener)
    with pytest.raises(Unanswered, match=r"gave no answer within 0\.3 s"):
        post.post(url, {}, b"{}")


def test_a_name_is_resolved_once_and_checked(listener, monkeypatch):
    """What was checked is connected to, whatever the name says a moment later."""
    port = listener.getsockname()[1]
    answers = [["10.0.0.1", "93.184.216.34"], ["127.0.0.1"]]
    dialled: list[str] = []

    def dial(address: str, *_: object) -> None:
        dialled.append(address)
        raise OSError(101, "not from a test")

    monkeypatch.setattr(outbound, "dial", dial)
    post = Sender([], lambda _: answers.pop(0))
    with pytest.raises(Unanswered, match="not from a test"):
        post.post(f"http://evil.example:{port}/", {}, b"{}")
    with pytest.raises(Forbidden, match=r"BANANAS_CALLBACK_ALLOW=127\.0\.0\.1"):
        post.post(f"http://evil.example:{port}/", {}, b"{}")
    assert dialled == ["93.184.216.34"]


def test_a_name_may_be_allowed_whatever_it_leads_to(listener):
    """For a receiver in a network whose addresses change."""
    answering(listener, b"HTTP/1.1 200 OK\r\n\r\n")
    port = listener.getsockname()[1]
    post = Sender([f"hooks.local:{port}"], lambda _: ["127.0.0.1"])
    assert post.post(f"http://HOOKS.local:{port}/", {}, b"{}").is_ok
    with pytest.raises(Forbidden):
        post.post("http://hooks.local:1/", {}, b"{}")
