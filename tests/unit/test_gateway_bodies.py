"""Request bodies: what is taken, and what is said about what is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from bananas.errors import InvalidRequest, PayloadTooLarge, UnknownFunction
from bananas.job import NewJob
from bananas.settings import LIMITS
from gateway import bodies


def body(**fields: object) -> bytes:
    return json.dumps({"name": "hello", **fields}).encode()


def job(**fields: object) -> NewJob:
    return bodies.new_job(body(**fields))


def refusal(raw: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        bodies.new_job(raw)
    return str(caught.value)


def test_the_payload_keeps_every_byte():
    """Payloads are never re-encoded: spaces, escapes, order and large numbers stay."""
    payload = b'{"b": 1,  "a":"\\u00e4\xc3\xa4", "n": 123456789012345678901234567890.10}'
    assert bodies.new_job(b'{"name":"hello", "payload": ' + payload + b" }").payload == payload


def test_a_job_without_options_leaves_everything_to_the_function():
    """Nothing given and null mean the same."""
    plain, nulls = job(), job(priority=None, pool=None, delay=None, run_at=None, retries=None, timeout=None)
    assert (plain.payload, plain.function) == (b"null", "hello")
    for made in (plain, nulls):
        assert (made.pool, made.priority, made.timeout_ms, made.max_retries) == (None, None, None, None)
        assert (made.delay_ms, made.run_at_ms, made.expires_after_ms, made.reply_to) == (0, None, None, None)


def test_times_are_text_with_a_unit_or_numbers_of_seconds():
    """Both forms mean the same, and run_at is an instant."""
    assert job(delay="1.5m").delay_ms == job(delay=90).delay_ms == 90_000
    assert job(timeout=0.25).timeout_ms == job(timeout="250ms").timeout_ms == 250
    assert job(expires_after="1h").expires_after_ms == 3_600_000
    utc, berlin = job(run_at="2026-11-24T06:00:00.5Z"), job(run_at="2026-11-24T07:00:00.500+01:00")
    assert utc.run_at_ms == berlin.run_at_ms == 1_795_500_000_500


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"priority": "hihg"}, 'priority must be high, normal or low, not "hihg"'),
        ({"pirority": "high"}, "unknown key 'pirority'; did you mean 'priority'?"),
        ({"zzz": 1}, "unknown key 'zzz'; known are name, payload, priority"),
        ({"retries": 21}, "retries must be a whole number from 0 to 20, not 21"),
        ({"retries": True}, "retries must be a whole number from 0 to 20, not true"),
        ({"delay": "soon"}, 'delay must be a time such as "10s" or a number of seconds, not "soon"'),
        ({"delay": -1}, "delay must be from 0ms to 366d, not -1"),
        ({"delay": 1e308}, "delay must be from 0ms to 366d, not 1e308"),
        ({"delay": "9" * 400 + "s"}, 'delay must be a time such as "10s" or a number of seconds, not "999'),
        ({"timeout": 2**70}, "timeout must be from 100ms to 1d, not 1180591620717411303424"),
        ({"timeout": "10ms"}, 'timeout must be from 100ms to 1d, not "10ms"'),
        ({"timeout": 1e300}, "timeout must be from 100ms to 1d, not 1e300"),
        ({"run_at": "2026-11-24T06:00:00"}, "run_at must be an RFC 3339 time with a zone"),
        ({"run_at": 1_795_500_000}, "run_at must be an RFC 3339 time with a zone"),
        ({"delay": 1, "run_at": "2026-11-24T06:00:00Z"}, "delay and run_at exclude each other"),
        ({"pool": "a,b"}, 'pool must be the name of a pool, not "a,b"'),
        ({"name": 7}, "name must be the name of a function, not 7"),
        ({"unique_key": "k\n"}, "unique_key must be 1 to 200 printable ASCII characters without spaces at its ends"),
        (
            {"unique_key": ""},
            'unique_key must be 1 to 200 printable ASCII characters without spaces at its ends, not ""',
        ),
        ({"unique_key": "k" * 201}, "unique_key must be 1 to 200 printable ASCII"),
        ({"callback_url": 7}, "callback_url must be the URL of an HTTP server such as https://example.com/bananas"),
        ({"run_at": "2999-11-24T06:00:00Z"}, "run_at is more than 366d from now; submit the job later"),
        (
            {"delay": "1h", "expires_after": "1h"},
            "expires_after is 1h from now, and delay lets the job begin no sooner than in 1h: it could never run",
        ),
        (
            {"run_at": f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}", "expires_after": "1h"},
            "and run_at lets the job begin no sooner than in",
        ),
    ],
)
def test_a_refusal_names_the_key_the_value_and_what_is_right(fields, said):
    """A client can mend its request from the message alone."""
    assert said in refusal(body(**fields))


def test_all_problems_are_told_at_once():
    """One round of mending is enough."""
    said = refusal(b'{"pirority": "high", "retries": -1, "callback_url": 7}')
    assert said.count("; ") >= 3
    for part in ("'pirority'", "name is missing", "retries must be", "callback_url must be"):
        assert part in said


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"name": "hello",}', "not valid JSON"),
        (b'{"name": "hello", "payload": {"a": 01}}', "not valid JSON: invalid number"),
        (b'{"name": "hello", "payload": NaN}', "not valid JSON"),
        (b'{"name": "hello", "payload": "\xff"}', "byte 30 is not UTF-8"),
        (b'{"name": "hello", "payload": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
        (b'["hello"]', "the body must be an object such as"),
        (b"null", "the body must be an object such as"),
    ],
)
def test_what_is_not_json_is_refused_with_the_reason(raw, said):
    """Nothing that is no JSON object ever reaches Redis."""
    assert said in refusal(raw)


def test_a_name_that_cannot_exist_is_an_unknown_function():
    """The same answer as for any function that is not deployed."""
    for name in ("Hello", "", "a:b", "x" * 64):
        with pytest.raises(UnknownFunction, match="no function"):
            job(name=name)


def test_a_payload_just_over_the_limit_is_refused_though_the_body_is_not():
    """The limit is the payload's; the rest of the body has its own room."""
    fitting = "x" * (LIMITS.payload_bytes - 2)
    assert len(job(payload=fitting).payload) == LIMITS.payload_bytes
    with pytest.raises(
        PayloadTooLarge, match=rf"{LIMITS.payload_bytes + 1} bytes.*limit is {LIMITS.payload_bytes} bytes"
    ):
        job(payload=fitting + "x")


def test_the_payload_of_a_synchronous_call_is_the_body():
    """Any JSON value; nothing is null; no JSON is an error."""
    assert bodies.sync_payload("hello", b"") == b"null"
    assert bodies.sync_payload("hello", b' {"a": 1} ') == b'{"a": 1}'
    for raw in (b"{", b"1 2", b'"\xff"', b"[" * 50_000):
        with pytest.raises(InvalidRequest, match="not valid JSON"):
            bodies.sync_payload("hello", raw)
    with pytest.raises(UnknownFunction):
        bodies.sync_payload("No!", b"1")


def test_waits_are_seconds_or_times_and_bounded():
    """More than the limit is the limit; nonsense is refused."""
    assert [bodies.wait_s(text) for text in (None, "0", "2.5", "30s", "9999")] == [None, 0, 2.5, 30, LIMITS.wait_s]
    for text in ("", "soon", "-1", "nan", "inf", "1_0", "٣"):
        with pytest.raises(InvalidRequest, match="wait must be"):
            bodies.wait_s(text)


def test_a_unique_key_comes_in_the_body_or_the_header_or_both_alike():
    """One that says two things is a mistake; so is a header that is no key."""
    assert bodies.new_job(body(unique_key="order 7")).unique_key == "order 7"
    assert bodies.new_job(body(), "order 7").unique_key == "order 7"
    assert bodies.new_job(body(unique_key="k" * 200), "k" * 200).unique_key == "k" * 200
    assert bodies.new_job(body()).unique_key is None
    with pytest.raises(InvalidRequest, match='unique_key "a" and Idempotency-Key "b" are not the same'):
        bodies.new_job(body(unique_key="a"), "b")
    for header in ("", "\u00e4", "k" * 201):
        with pytest.raises(InvalidRequest, match="Idempotency-Key must be 1 to 200 printable ASCII"):
            bodies.new_job(body(), header)
