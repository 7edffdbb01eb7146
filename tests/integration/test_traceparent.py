"""W3C's trace context: from the request into the claim of every attempt."""

from __future__ import annotations

import pytest

from bananas import keys
from bananas.job import Outcome
from gateway import bodies
from tests.integration.gateway_player import send

pytestmark = pytest.mark.redis

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_job_keeps_the_trace_context_of_its_submit(client, player, connections):
    """Each of its attempts gets it; a job without one stores nothing."""
    client.post("/jobs", json={"name": "hello"}, headers={"traceparent": TRACE})
    first = player.claim()
    assert first.traceparent == TRACE
    player.settle(first, Outcome.ERROR, error={"type": "ValueError", "message": "boom"})
    connections.commands.zadd(keys.SCHEDULE, {first.id: 1})
    player.queue.promote()
    assert player.claim().traceparent == TRACE
    send(client, "POST", "/jobs", {"name": "hello"})
    plain = player.claim()
    assert plain.traceparent is None
    assert not connections.commands.hexists(keys.job(plain.id), "trace")


def test_each_job_of_a_batch_may_have_a_trace_context_of_its_own(client, player):
    """The header stands for the others; in a body, what is none is an error."""
    others = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    jobs = [{"name": "hello", "traceparent": TRACE}, {"name": "hello"}, {"name": "hello", "traceparent": None}]
    client.post("/jobs/batch", json={"jobs": jobs}, headers={"traceparent": others})
    assert [player.claim().traceparent for _ in jobs] == [TRACE, others, others]
    wrong = {"name": "hello", "traceparent": TRACE + "-more"}
    answer = client.post("/jobs/batch", json={"jobs": [wrong]}).get_json()["jobs"][0]["error"]
    assert (answer["code"], answer["detail"][:44]) == (
        "invalid-request",
        "traceparent must be a W3C trace context such",
    )
    send(client, "POST", "/jobs", {"name": "hello", "traceparent": others})
    assert player.claim().traceparent == others


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (None, False),
        (TRACE, True),
        ("cc" + TRACE[2:] + "-what-the-future-will-bring", True),
        (TRACE + "-more", False),
        ("ff" + TRACE[2:], False),
        (TRACE.upper(), False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", False),
        ("nonsense\n", False),
    ],
)
def test_what_is_no_trace_context_is_ignored(header, kept):
    """As W3C wants it: a wrong header never fails a request."""
    assert bodies.trace(header) == (header if kept else None)
