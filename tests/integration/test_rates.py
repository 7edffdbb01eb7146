"""Rates of tokens and functions: what they refuse and with which words, however a job is submitted, and what counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from bananas import keys
from bananas.dead_letters import DeadFilter, DeadLetters
from bananas.errors import RateLimited
from bananas.job import Enqueued, JobState, Meter, NewJob, Outcome
from bananas.redis_client import Connections
from bananas.schedules import Schedules
from bananas.spec import RateSpec, RetrySpec, ScheduleSpec, rate_of
from bananas.tokens import Tokens
from tests.integration.gateway_player import Player, assert_problem, send

pytestmark = pytest.mark.redis

#: So slow that nothing comes back during a test.
SLOW = RateSpec(limit="2/h")
BUCKET = f"{keys.PREFIX}rate:function:slow"


@pytest.fixture
def slow(player: Player) -> Player:
    player.deploy("slow", rate=SLOW, retries=RetrySpec(max=0))
    player.announce()
    return player


@pytest.fixture
def open_client(app_client: Callable[..., FlaskClient], connections: Connections, slow: Player) -> FlaskClient:
    """Of a gateway that wants tokens."""
    return app_client(connections, host="0.0.0.0")


def use(client: FlaskClient, text: str) -> None:
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {text}"


def refill(connections: Connections, bucket: str = BUCKET) -> None:
    """As if there had been a long pause."""
    assert connections.commands.delete(bucket)


def submit(client: FlaskClient, name: str = "slow", **more: Any) -> int:
    return send(client, "POST", "/jobs", {"name": name, **more}).status_code


def test_a_function_takes_as_many_as_its_rate_allows(client, slow, connections):
    """The burst at once, then a refusal that says how long to wait; other functions go on."""
    assert [submit(client) for _ in range(3)] == [202, 202, 429]
    refused = send(client, "POST", "/jobs", {"name": "slow"})
    body = assert_problem(refused, 429, "rate-limited", "function slow may have 2/h jobs, 2 at once")
    assert (body["scope"], body["limit"]) == ("function", "2/h, burst 2")
    assert 1_790_000 < body["retry_after_ms"] <= 1_800_000
    assert 1790 < int(refused.headers["Retry-After"]) <= 1800
    assert submit(client, "hello") == 202
    refill(connections)
    assert submit(client) == 202


CALLS: dict[str, Callable[[FlaskClient], Any]] = {
    "invoke": lambda client: send(client, "POST", "/functions/slow/invoke", {}),
    "raw": lambda client: client.get("/fn/slow/x"),
    "aws event": lambda client: client.post(
        "/2015-03-31/functions/slow/invocations", data=b"{}", headers={"X-Amz-Invocation-Type": "Event"}
    ),
    "aws": lambda client: client.post("/2015-03-31/functions/slow/invocations", data=b"{}"),
}


@pytest.mark.parametrize("how", CALLS)
def test_every_way_to_submit_counts_alike(client, slow, queue, how):
    """429 with Retry-After, in the words of the API that was asked; nothing was queued."""
    for _ in range(2):
        queue.enqueue(NewJob("slow", b"1"))
    refused = CALLS[how](client)
    assert refused.status_code == 429, refused.data
    assert int(refused.headers["Retry-After"]) > 1000
    if how.startswith("aws"):
        assert refused.headers["x-amzn-ErrorType"] == "TooManyRequestsException"
    else:
        assert json.loads(refused.data)["code"] == "rate-limited"
    assert queue.depths(["default"])[1].queued == 2


def test_each_job_of_a_batch_counts(client, slow, queue):
    """What is over the rate is refused by itself, with the wait in its problem."""
    answer = send(client, "POST", "/jobs/batch", {"jobs": [{"name": "slow"}] * 3 + [{"name": "hello"}]})
    jobs = answer.get_json()["jobs"]
    assert (answer.status_code, ["error" in job for job in jobs]) == (207, [False, False, True, False])
    assert (jobs[2]["error"]["code"], jobs[2]["error"]["status"]) == ("rate-limited", 429)
    assert queue.counts().counters["refused:slow:function_rate"] == 1
    assert 'bananas_jobs_refused_total{function="slow",reason="function_rate"} 1.0' in client.get("/metrics").get_data(
        as_text=True
    )


def test_a_token_has_a_rate_of_its_own(open_client, connections, queue):
    """Over all its functions, and not shared with another token; the function's rate holds beside it."""
    tokens = Tokens(connections)
    (first, text), (_, other) = (tokens.create(name, ("invoke",), rate=rate_of("1/h", 3)) for name in "ab")
    use(open_client, text)
    assert [submit(open_client, "hello") for _ in range(4)] == [202, 202, 202, 429]
    refused = send(open_client, "POST", "/functions/hello/invoke", {})
    assert_problem(refused, 429, "rate-limited", f"token {first.id} may have 1/h jobs, 3 at once")
    use(open_client, other)
    assert [submit(open_client, "slow") for _ in range(3)] == [202, 202, 429]
    assert submit(open_client, "hello") == 202  # what the function refused was not taken from the token
    assert submit(open_client, "hello") == 429
    use(open_client, tokens.create("free", ("invoke",))[1])
    assert submit(open_client, "hello") == 202
    counters = queue.counts().counters
    assert (counters["refused:hello:token_rate"], counters["refused:slow:function_rate"]) == (3, 1)


def test_what_is_refused_or_a_duplicate_takes_nothing(client, slow, queue, connections):
    """Sending the same job again is safe, and a full queue is not also a spent rate."""
    job = NewJob("slow", b"1", unique_key="k")
    assert not queue.enqueue(job).duplicate
    assert queue.enqueue(job).id == job.id
    assert queue.enqueue(NewJob("slow", b"1", unique_key="k")).duplicate
    assert submit(client, pool="nowhere") == 422
    assert submit(client) == 202
    assert submit(client) == 429
    assert queue.enqueue(job).id == job.id


def test_schedules_and_replays_do_not_count(slow, queue, connections):
    """They are the operator's own; a rate guards against callers."""
    for _ in range(2):
        queue.enqueue(NewJob("slow", b"1"))
    slow.settle(slow.claim(), Outcome.ERROR, error={"type": "E", "message": "m"})
    [letter] = DeadLetters(connections).page(DeadFilter()).letters
    assert DeadLetters(connections).replay([letter.id]) == [JobState.PENDING]
    slow.deploy("slow", rate=SLOW, schedule=ScheduleSpec(cron="* * * * *", catchup="all"))
    connections.commands.hincrby(keys.cron("slow"), "last", -60_000)
    assert Schedules(connections).look().fired


def test_a_bucket_fills_by_one_at_a_time(queue, connections, slow):
    """After half an hour one more fits at 2/h; never more than the burst; a clock that was set back costs no more."""

    def fits() -> int:
        answers = queue.enqueue_many([NewJob("slow", b"1") for _ in range(4)])
        return sum(isinstance(answer, Enqueued) for answer in answers)

    def set_full(in_ms: int) -> None:
        seconds, _ = connections.commands.time()
        connections.commands.set(BUCKET, seconds * 1000 + in_ms, keepttl=True)

    assert fits() == 2
    set_full(1_790_000)
    assert fits() == 1
    set_full(-1_000_000)
    assert fits() == 2
    set_full(1_000_000_000)
    with pytest.raises(RateLimited) as refused:
        queue.enqueue(NewJob("slow", b"1"))
    assert refused.value.details["retry_after_ms"] <= 1_800_000
    assert connections.commands.pttl(BUCKET) <= 3_600_000


def test_a_fast_rate_is_exact(queue, connections, player):
    """Of a thousand at once as many are taken as the burst has, and a few that came back meanwhile."""
    meter = Meter("t", RateSpec(limit="10/s", burst=300))
    answers = queue.enqueue_many([NewJob("hello", b"1", meter=meter) for _ in range(1000)])
    taken = [isinstance(answer, Enqueued) for answer in answers]
    assert all(taken[:300])
    assert 300 <= sum(taken) < 1000


@pytest.mark.parametrize(
    ("limit", "burst", "interval_ms", "most"),
    [("10/s", None, 100, 10), ("100/m", 5, 600, 5), ("1/h", None, 3_600_000, 1), (" 3/s ", None, 1000 / 3, 3)],
)
def test_a_rate_is_read(limit, burst, interval_ms, most):
    """As many at once as it has in one period, unless said otherwise."""
    rate = rate_of(limit, burst)
    assert rate is not None
    assert (rate.interval_ms, rate.most) == (interval_ms, most)


@pytest.mark.parametrize("limit", ["0/s", "10", "10/d", "-1/s", "1.5/s", "10000000/s", "10/s\n/s"])
def test_what_is_no_rate_is_refused(limit, client):
    """For a token too, with what is right."""
    with pytest.raises(ValueError, match="is not a rate; write a whole number and /s, /m or /h"):
        rate_of(limit, None)
    refused = send(client, "POST", "/tokens", {"name": "t", "scopes": ["invoke"], "rate": limit})
    assert_problem(refused, 422, "invalid-request", "is not a rate")


def test_a_token_tells_its_rate(client):
    """A burst without one is refused."""
    body = {"name": "t", "scopes": ["invoke"], "rate": "10/s", "burst": 20}
    assert send(client, "POST", "/tokens", body).get_json()["rate"] == {"limit": "10/s", "burst": 20}
    assert [token["rate"] for token in client.get("/tokens").get_json()["tokens"]] == [{"limit": "10/s", "burst": 20}]
    refused = send(client, "POST", "/tokens", {"name": "t", "scopes": ["invoke"], "burst": 2})
    assert_problem(refused, 422, "invalid-request", "a burst is of a rate")
