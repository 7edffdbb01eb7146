"""What the gateway says: problems, records, timings; and what it refuses before it looks at a request."""

from __future__ import annotations

import dataclasses
import doctest
import io
import logging

import msgspec
import pytest
from flask import Flask, request
from werkzeug.exceptions import ClientDisconnected

from bananas import errors
from bananas.job import JobRecord, JobState
from bananas.settings import LIMITS
from gateway import guard, listen, problems, records
from gateway.answers import JSON, Answer
from gateway.app import Gateway
from gateway.asked import Asked, begin

#: Of a request whose body is JSON.
BODY = {"REQUEST_METHOD": "POST", "PATH_INFO": "/body", "CONTENT_TYPE": "application/json"}


@pytest.fixture
def app() -> Flask:
    """An app with routes that fail in every way, and one that reads a body of at most 100 bytes."""
    app = Gateway("test")
    app.before_request(lambda: begin(request.environ) and None)
    app.register_error_handler(Exception, problems.of)

    def fail(error: Exception):
        raise error

    app.add_url_rule("/bug", view_func=lambda: fail(KeyError("secret")), endpoint="bug")
    app.add_url_rule("/full", view_func=lambda: fail(errors.QueueFull("pool 'a' is full", pool="a")), endpoint="full")
    app.add_url_rule("/config", view_func=lambda: fail(errors.ConfigError("secret")), endpoint="config")
    app.add_url_rule("/body", view_func=lambda: guard.read_body(100, what="note"), methods=["POST"], endpoint="body")
    return app


def test_an_error_of_ours_becomes_its_problem(app):
    """RFC 9457: type, title, status, detail; and our code and facts beside them."""
    answer = app.test_client().get("/full")
    assert (answer.status_code, answer.mimetype) == (429, "application/problem+json")
    assert answer.headers["Retry-After"] == "5"
    assert answer.get_json(force=True) == {
        "type": "urn:bananas:problem:queue-full",
        "title": "The queue is full",
        "status": 429,
        "detail": "pool 'a' is full",
        "code": "queue-full",
        "pool": "a",
    }


@pytest.mark.parametrize("path", ["/bug", "/config"])
def test_what_nobody_foresaw_is_logged_and_hidden(app, path, caplog):
    """The client gets a request id, the log gets the traceback under it."""
    with caplog.at_level(logging.ERROR):
        answer = app.test_client().get(path)
    body = answer.get_json(force=True)
    assert (answer.status_code, body["code"]) == (500, "internal-error")
    assert "secret" not in answer.text
    [record] = caplog.records
    assert body["request"] in record.getMessage()
    assert record.exc_info


def test_flask_own_refusals_are_problems_too(app):
    """No call ever gets an HTML page."""
    client = app.test_client()
    missing, wrong = client.get("/nothing"), client.post("/full")
    assert (missing.status_code, missing.get_json(force=True)["code"]) == (404, "not-found")
    assert (wrong.status_code, wrong.get_json(force=True)["code"]) == (405, "method-not-allowed")
    assert "GET" in wrong.headers["Allow"]
    assert {missing.mimetype, wrong.mimetype} == {"application/problem+json"}


def test_every_error_a_client_can_cause_has_a_status():
    """A new error class cannot be forgotten in the table."""

    def tree(kind: type[errors.BananasError]) -> list[type[errors.BananasError]]:
        return [
            kind,
            *(leaf for sub in kind.__subclasses__() if sub.__module__ == errors.__name__ for leaf in tree(sub)),
        ]

    for kind in [*tree(errors.RequestError), errors.RedisUnavailable, errors.QueueFull, errors.NoLiveRunner]:
        assert kind.code in problems.STATUSES


def test_a_body_needs_its_media_type_even_when_empty(app):
    """A page in a browser can send text/plain, or nothing, to any address without asking first."""
    client = app.test_client()
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = client.post("/body", data=b"", headers=headers)
        assert (answer.status_code, answer.get_json(force=True)["code"]) == (415, "unsupported-media-type")
    assert "application/json" in answer.get_json(force=True)["detail"]
    assert client.post("/body", data=b"1", headers={"Content-Type": "application/json; charset=utf-8"}).data == b"1"


def test_a_large_body_is_refused_before_it_is_read(app):
    """The length that is announced decides; a body without one is cut off at the limit."""
    client = app.test_client()
    answer = client.post("/body", data=b"x" * 101, content_type="application/json")
    assert (answer.status_code, answer.get_json(force=True)["code"]) == (413, "too-large")
    assert "the note has 101 bytes; the limit is 100 bytes" in answer.get_json(force=True)["detail"]
    begin({**BODY, "wsgi.input": Endless(), "wsgi.input_terminated": True})
    with pytest.raises(errors.PayloadTooLarge, match="larger than allowed; the limit is 100 bytes"):
        guard.read_body(100)


def test_a_body_that_is_cut_off_is_not_taken_for_a_whole_one():
    """12345 whose end was lost with the connection must not become the payload 123."""
    begin({**BODY, "CONTENT_LENGTH": "5", "wsgi.input": io.BytesIO(b"123"), "wsgi.input_terminated": True})
    with pytest.raises(ClientDisconnected):
        guard.read_body(100)


class Endless:
    """A body sent in chunks that never ends."""

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size < 100_000, "read without a bound"
        return b"x" * size


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "app.localhost", "127.0.0.1:8080", "127.9.9.9", "[::1]:80"]
)
def test_loopback_names_are_served(host):
    """Every way to write this machine."""
    guard.host_check(())(Asked({"HTTP_HOST": host}))


@pytest.mark.parametrize(
    "host",
    ["", "example.com", "localhost.example.com", "127.0.0.1.example.com", "192.168.0.1", "0.0.0.0", "[::]", "a:b:c"],
)
def test_other_names_are_refused(host):
    """A DNS name that somebody pointed at 127.0.0.1 is not this machine's name."""
    with pytest.raises(errors.HostNotAllowed):
        guard.host_check(())(Asked({"HTTP_HOST": host}))


def record(**fields: object) -> JobRecord:
    known = JobRecord(
        *("i", "hello", "v", "default", "low", JobState.FAILED, 1_795_500_000_123, None, None, None),
        *(2, 1, 0, 3, 30_000, None, None, None, []),
    )
    return dataclasses.replace(known, **fields)


def test_a_record_shows_stored_json_untouched_and_attempts_by_token():
    """Numbers that no float can hold survive, and the first lines of a cut history keep their numbers."""
    line = b'{"token":7,"outcome":"lost","runner":"r","started_at_ms":5,"error":{"type":"Lost","message":"m"}}'
    shown = records.public(record(result=b'{"n":1.10e400}', history=[line], token=7), {7: b"printed"}, {})
    text = msgspec.json.encode(shown)
    assert b'"result":{"n":1.10e400}' in text
    assert b'"error":null' in text
    assert b'"created_at":"2026-11-24T06:00:00.123Z"' in text
    [attempt] = shown["history"]
    assert (shown["attempts"], attempt["attempt"], attempt["outcome"], attempt["logs"]) == (7, 7, "lost", "printed")
    assert b'"error":{"type":"Lost","message":"m"},"logs"' in text


def test_the_log_shown_is_the_end_of_it_and_begins_with_a_whole_character():
    """A record stays small; /jobs/{id}/logs has the rest."""
    line = b'{"token":1,"outcome":"ok","runner":"r","log_bytes":20000}'
    for log in ("ä" * 10_000, "€" * 7_000, "x" * 20_000):
        [attempt] = records.public(record(history=[line]), {1: log.encode() + b"\xff"}, {})["history"]
        assert LIMITS.log_tail_bytes - 4 <= len(attempt["logs"][:-1].encode()) < LIMITS.log_tail_bytes
        assert attempt["logs"].count("�") == 1


@pytest.mark.parametrize("module", [listen, records])
def test_doctests(module):
    """Examples in docstrings are true."""
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_an_answer_s_head_is_one_line_for_each_header():
    """Whoever brings a line break into a value does not add a header to the answer."""
    answer = Answer(b"{}", 202, [("Location", "/jobs/1")], JSON)
    lines = answer.head((1, 0), "us", closes=True).split(b"\r\n")
    assert lines.pop(2).startswith(b"Date: ")
    assert lines == [
        *(b"HTTP/1.0 202 ACCEPTED", b"Server: us", b"Connection: close"),
        *(b"Location: /jobs/1", b"Content-Type: application/json", b"Content-Length: 2", b"", b""),
    ]
    for text in ("a\nb: c", "a\rb: c", "a\r\nb: c"):
        with pytest.raises(ValueError, match="more than one line"):
            Answer(b"", 200, [("Location", text)]).head((1, 1), "us", closes=False)
