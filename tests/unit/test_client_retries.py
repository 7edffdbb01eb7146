"""What the client sends again, with which key, and for how long."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from email.utils import formatdate

import msgspec
import pytest

from bananas import client_types
from bananas.client import Client
from bananas.client_wire import Patience
from bananas.errors import ApiError, GatewayUnreachable, JobFailed, JobNotOver
from gateway import shapes
from tests.tools.stub_gateway import StubGateway, problem

BUSY = problem(429, "queue-full", "full")[1]
NO_REDIS = problem(503, "redis-unavailable", "Redis is away")[1]


@pytest.fixture
def client(gateway: StubGateway) -> Iterator[Client]:
    """Patient enough for any machine."""
    with Client(gateway.url, patience_s=60) as client:
        yield client


def sent(gateway: StubGateway) -> list[str]:
    """The unique keys of the jobs that were sent, batch or not."""
    bodies = [json.loads(body) for body in gateway.bodies if body]
    return [job["unique_key"] for body in bodies for job in body.get("jobs", [body])]


def test_a_submit_whose_answer_is_lost_is_sent_again_under_one_key(gateway: StubGateway, client: Client) -> None:
    """So there is one job, and the caller is not told of a duplicate that is its own."""
    gateway.faults.extend(["lost", "lost"])
    gateway.override["POST /jobs"] = 200, {"id": "j1", "status": "pending", "duplicate": True}
    assert client.submit("hello", {"n": 1}) == {"id": "j1", "status": "pending", "duplicate": False}
    first, second, third = sent(gateway)
    assert first == second == third
    client.submit("hello")
    assert sent(gateway)[3] != first


def test_the_callers_own_key_is_kept_and_its_duplicates_are_told(gateway: StubGateway, client: Client) -> None:
    """A key that was given means what it says."""
    gateway.override["POST /jobs"] = 200, {"id": "j1", "status": "completed", "duplicate": True}
    assert client.submit("hello", unique_key="order-7")["duplicate"] is True
    assert sent(gateway) == ["order-7"]


def test_each_job_of_a_batch_has_a_key_and_the_batch_is_sent_again(gateway: StubGateway, client: Client) -> None:
    """One lost answer does not make a second batch of jobs."""
    gateway.faults.append("lost")
    jobs = [{"name": "hello"}, {"name": "hello", "unique_key": "mine"}, {"name": "nope"}]
    answers = list(client.submit_many(jobs))
    assert [answer.get("id") for answer in answers] == ["job-1", "job-2", None]
    keys = sent(gateway)
    assert keys[:3] == keys[3:]
    assert keys[1] == "mine"
    assert len(set(keys)) == 3


def test_without_patience_nothing_is_sent_twice_and_no_key_is_made(gateway: StubGateway) -> None:
    """What the command line wants."""
    gateway.faults.append("lost")
    with Client(gateway.url, patience_s=0) as client, pytest.raises(GatewayUnreachable):
        client.submit("hello")
    assert len(gateway.calls) == 1
    assert b"unique_key" not in gateway.bodies[0]


@pytest.mark.parametrize(
    "fault",
    [
        (429, BUSY, {"Retry-After": "0"}),
        (503, NO_REDIS, {"Retry-After": "0"}),
        (502, b"<html>bad gateway</html>", {}),
        "lost",
    ],
    ids=["busy", "no-redis", "proxy", "lost"],
)
def test_what_may_pass_is_tried_again(gateway: StubGateway, client: Client, fault: typing.Any) -> None:
    """The caller sees only the answer."""
    gateway.record("j1")
    gateway.faults.append(fault)
    assert client.job("j1")["result"] == {"n": 1}
    assert gateway.calls == ["GET /jobs/j1"] * 2


def test_a_call_that_might_have_begun_is_not_sent_again_unless_it_has_a_key(
    gateway: StubGateway, client: Client
) -> None:
    """A function is called at most once by an invoke without a key; a refusal is no call."""
    gateway.faults.append("lost")
    with pytest.raises(GatewayUnreachable):
        client.invoke("hello", timeout_s=30)
    gateway.faults.append((503, NO_REDIS, {}))
    with pytest.raises(ApiError, match="Redis is away"):
        client.invoke("hello", timeout_s=30)
    assert len(gateway.calls) == 2
    gateway.faults.extend(["lost", (429, BUSY, {"Retry-After": "0"})])
    assert client.invoke("hello", b"1", timeout_s=30, unique_key="k") == b"1"
    gateway.faults.append((429, BUSY, {"Retry-After": "0"}))
    assert client.invoke("hello", b"2", timeout_s=30) == b"2"
    gateway.faults.append("lost")
    with pytest.raises(GatewayUnreachable):
        client.create_token("ci", ["invoke"])


def test_the_answer_of_a_job_that_failed_is_not_asked_for_again(gateway: StubGateway, client: Client) -> None:
    """502 and 504 of a gateway tell how a call ended; only a proxy's are about the way."""
    for status, code in ((502, "sandbox-died"), (504, "timeout"), (500, "handler-error")):
        gateway.faults.append((status, problem(status, code, code)[1], {}))
        with pytest.raises(ApiError, match=code):
            client.invoke("hello", timeout_s=30, unique_key="k")
    assert len(gateway.calls) == 3


def test_a_gateway_that_wants_to_be_left_alone_for_longer_than_the_patience_ends_the_call(
    gateway: StubGateway, client: Client
) -> None:
    """At once, with the time that it named."""
    gateway.faults.append((429, BUSY, {"Retry-After": "3600"}))
    with pytest.raises(ApiError) as caught:
        client.submit("hello")
    assert caught.value.retry_after_s == 3600
    gateway.faults.append((503, NO_REDIS, {"Retry-After": formatdate(2_000_000_000, usegmt=True)}))
    with pytest.raises(ApiError) as caught:
        client.jobs()
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 1000


def test_patience_ends(free_port: int) -> None:
    """Nobody is there, and the caller hears of it."""
    with Client(f"http://127.0.0.1:{free_port}", patience_s=0.3) as client, pytest.raises(GatewayUnreachable):
        client.submit("hello")
    patience = Patience(0.25)
    tries = 0
    while patience.wait():
        tries += 1
    assert 1 <= tries <= 4


def test_a_removal_whose_answer_was_lost_is_done(gateway: StubGateway, client: Client) -> None:
    """What is not there any more was removed by the try before; what never was there is an error."""
    gateway.deploy("hello")
    gateway.faults.append("lost")
    client.delete_function("hello")
    with pytest.raises(ApiError):
        client.delete_function("hello")


def test_a_replay_and_a_rollback_that_are_sent_again_are_the_first_ones(gateway: StubGateway, client: Client) -> None:
    """A replay has a key; going back once more would be another rollback, so it is not sent again."""
    gateway.faults.append("lost")
    assert client.replay("j1")["status"] == "pending"
    first, second = (headers["Idempotency-Key"] for headers in gateway.headers)
    assert first == second
    gateway.faults.append("lost")
    with pytest.raises(GatewayUnreachable):
        client.rollback("hello")


def test_submit_and_wait_gives_the_result_or_says_how_the_job_ended(gateway: StubGateway, client: Client) -> None:
    """Both errors have the record."""
    gateway.record("job-1")
    assert client.submit_and_wait("hello") == {"n": 1}
    error = {"type": "ValueError", "message": "boom"}
    failed = gateway.jobs["job-1"] | {"status": "failed", "reason": "permanent", "error": error}
    gateway.override["GET /jobs/job-1"] = 200, failed
    with pytest.raises(JobFailed, match=r"job job-1 failed \(permanent\) after 1 attempt: ValueError: boom") as caught:
        client.submit_and_wait("hello")
    assert caught.value.job["error"] == error
    gateway.override["GET /jobs/job-1"] = 200, failed | {"status": "processing"}
    with pytest.raises(JobNotOver, match=r"job job-1 is still processing after 0.1 s") as late:
        client.submit_and_wait("hello", timeout_s=0.1)
    assert late.value.job["id"] == "job-1"


def stream(*events: tuple[str, dict[str, object]]) -> bytes:
    """A body of server-sent events."""
    return b"".join(b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps(data).encode()) for name, data in events)


def test_followed_output_goes_on_after_the_gateway_went(gateway: StubGateway, client: Client) -> None:
    """A stream begins anew, and nothing of it is told twice."""
    first = ("log", {"attempt": 1, "text": "one\ntw"})
    gateway.faults.extend(
        [
            (200, stream(first), {}),
            "lost",
            (503, NO_REDIS, {"Retry-After": "0"}),
            (
                200,
                stream(
                    ("log", {"attempt": 1, "text": "one\n"}),
                    ("log", {"attempt": 1, "text": "two\n"}),
                    ("log", {"attempt": 2, "text": "again\n"}),
                    ("end", {"id": "j1", "status": "completed"}),
                ),
                {},
            ),
        ]
    )
    events = list(client.follow_logs("j1"))
    assert "".join(event["text"] for event in events if event["event"] == "log") == "one\ntwo\nagain\n"
    assert events[-1] == {"event": "end", "id": "j1", "status": "completed"}


def test_following_what_does_not_exist_is_an_error_at_once(gateway: StubGateway, client: Client) -> None:
    """Nobody waits for a typing error."""
    gateway.faults.append((404, problem(404, "unknown-job", "no job j9")[1], {}))
    with pytest.raises(ApiError, match="no job j9"):
        list(client.follow_logs("j9"))
    gateway.faults.append((200, stream(("error", {"code": "unknown-job", "detail": "it is gone"})), {}))
    with pytest.raises(ApiError, match="it is gone"):
        list(client.follow_logs("j9"))


@pytest.mark.parametrize(
    ("told", "shape"),
    [
        (client_types.Submitted, shapes.Submitted),
        (client_types.Attempt, shapes.Attempt),
        (client_types.JobInShort, shapes.Listed),
        (client_types.Job, shapes.Record),
        (client_types.JobPage, shapes.JobPage),
        (client_types.Moved, shapes.Moved),
        (client_types.Letter, shapes.Letter),
        (client_types.LetterPage, shapes.LetterPage),
    ],
    ids=lambda kind: kind.__name__,
)
def test_the_types_have_the_members_of_the_gateways_answers(told: type, shape: type[msgspec.Struct]) -> None:
    """Neither more nor fewer."""
    assert set(typing.get_type_hints(told)) == {field.encode_name for field in msgspec.structs.fields(shape)}
