"""Batches, unique keys, and what a job says that does not begin; over a real Redis."""

from __future__ import annotations

import json

import pytest

from bananas.errors import RedisUnavailable
from bananas.job import Enqueued, NewJob
from bananas.queue import Queue
from bananas.settings import LIMITS
from tests.integration.gateway_player import assert_problem, send

pytestmark = pytest.mark.redis


# -- batches ----------------------------------------------------------------------------------------------------


def test_a_batch_answers_each_job_in_order(client, player):
    """202 when all were taken, and they are queued in their order."""
    jobs = [{"name": "hello", "payload": n} for n in range(250)]
    answer = send(client, "POST", "/jobs/batch", {"jobs": jobs})
    body = answer.get_json()
    assert (answer.status_code, body["accepted"], body["refused"]) == (202, 250, 0)
    assert set(body["jobs"][0]) == {"id", "status", "name", "version", "pool", "duplicate"}
    claims = player.queue.step("player", 30_000, [], [("default", 250)]).claims
    assert [int(claim.payload) for claim in claims] == list(range(250))
    assert [claim.id for claim in claims] == [job["id"] for job in body["jobs"]]


def test_what_is_wrong_in_a_batch_does_not_stop_the_rest(client, player):
    """207: every refused job has the problem that it would have had alone, in its own place."""
    jobs = [
        {"name": "hello", "payload": 1},
        {"name": "helo"},
        {"name": "hello", "priority": "urgent"},
        {"name": "hello", "run_at": "2026-11-24T06:00:00"},
        {"name": "hello", "pool": "gpu"},
        {"name": "hello", "payload": "x" * LIMITS.payload_bytes},
        7,
        {"name": "hello", "delay": "1h"},
    ]
    answer = send(client, "POST", "/jobs/batch", {"jobs": jobs})
    body = answer.get_json()
    assert (answer.status_code, body["accepted"], body["refused"]) == (207, 2, 6)
    found = [job["error"]["code"] if "error" in job else job["status"] for job in body["jobs"]]
    assert found == [
        "pending",
        "unknown-function",
        "invalid-request",
        "invalid-request",
        "unknown-pool",
        "too-large",
        "invalid-request",
        "scheduled",
    ]
    told = [job["error"]["detail"] for job in body["jobs"][1:7]]
    assert "did you mean 'hello'?" in told[0]
    assert told[1] == 'priority must be high, normal or low, not "urgent"'
    assert told[2].startswith("run_at must be an RFC 3339 time with a zone")
    assert "the body must be an object" in told[5]
    assert [job["error"]["status"] for job in body["jobs"][1:7]] == [404, 422, 422, 422, 413, 422]


def test_what_is_no_batch_is_refused_as_a_whole(client):
    """Nothing is queued; the message says how to write one."""
    for raw, said in [
        (b"[]", "the body must be an object such as .*jobs"),
        (b"{}", "jobs is missing; it must be a list of bodies"),
        (b'{"jobs": {}}', "jobs must be a list"),
        (b'{"jobs": []}', "a batch has 1 to 1000 jobs, not 0; leave it out"),
        (json.dumps({"jobs": [{}] * 1001}).encode(), "a batch has 1 to 1000 jobs, not 1001; split it"),
        (b'{"jobs": [{"name": "hello"}], "job": 1}', "unknown key 'job'; did you mean 'jobs'"),
        (b'{"jobs": [{"name": "hello"},]}', "not valid JSON"),
    ]:
        assert_problem(send(client, "POST", "/jobs/batch", raw), 422, "invalid-request", said)
    large = b'{"jobs": [' + b" " * LIMITS.batch_bytes + b'{"name": "hello"}]}'
    assert_problem(send(client, "POST", "/jobs/batch", large), 413, "too-large", f"limit is {LIMITS.batch_bytes}")
    keyed = client.post(
        "/jobs/batch",
        data=b'{"jobs": [{"name": "hello"}]}',
        content_type="application/json",
        headers={"Idempotency-Key": "k"},
    )
    assert_problem(keyed, 422, "invalid-request", "give each of its jobs a unique_key")
    assert client.get("/pools").get_json()["pools"][0]["queued"]["normal"] == 0


class Leaving(Queue):
    """The real queue; Redis goes away after the first jobs of a batch."""

    def enqueue_many(self, jobs):
        """Take the first; nobody knows of the rest."""
        first = super().enqueue_many(jobs[:1])
        return [*first, *[RedisUnavailable("Redis does not answer")] * (len(jobs) - 1)]


def test_a_redis_that_goes_in_between_is_told_by_job(app_client, connections, player, monkeypatch):
    """What was taken says so; what is not known says to try again, and a unique key makes that safe."""
    monkeypatch.setattr("gateway.parts.Queue", Leaving)
    answer = send(app_client(connections), "POST", "/jobs/batch", {"jobs": [{"name": "hello"}] * 3})
    assert answer.status_code == 207
    codes = [job.get("error", {}).get("code") for job in answer.get_json()["jobs"]]
    assert codes == [None, "redis-unavailable", "redis-unavailable"]


# -- unique keys ------------------------------------------------------------------------------------------------


def test_a_second_job_with_the_same_key_is_the_first_one(client, player):
    """202 then 200, the same id and place; in the body or the header; another function has keys of its own."""
    player.deploy("other")
    first = send(client, "POST", "/jobs", {"name": "hello", "payload": 1, "unique_key": "order-7"})
    again = client.post(
        "/jobs",
        data=b'{"name":"hello","payload":2}',
        content_type="application/json",
        headers={"Idempotency-Key": "order-7"},
    )
    other = send(client, "POST", "/jobs", {"name": "other", "unique_key": "order-7"})
    assert [a.status_code for a in (first, again, other)] == [202, 200, 202]
    assert [a.get_json()["duplicate"] for a in (first, again, other)] == [False, True, False]
    assert again.get_json() == first.get_json() | {"duplicate": True}
    assert again.headers["Location"] == first.headers["Location"]
    assert player.claim().payload == b"1"
    assert (
        send(client, "POST", "/jobs", {"name": "hello", "unique_key": "order-7"}).get_json()["status"] == "processing"
    )


def test_duplicates_in_a_batch_name_the_first_job(client):
    """Also when the first is in the same batch."""
    body = send(client, "POST", "/jobs/batch", {"jobs": [{"name": "hello", "unique_key": "k"}] * 2}).get_json()
    first, second = body["jobs"]
    assert (first["id"], first["duplicate"], second["duplicate"]) == (second["id"], False, True)
    assert body["accepted"] == 2


# -- what a job waits for -----------------------------------------------------------------------------------------


def test_jobs_for_a_pool_without_a_live_runner_say_so_everywhere(client, player):
    """In the record, at the pool and in /readyz, with the next step; not once a runner is there."""
    send(client, "PUT", "/pools/gpu", {})
    player.deploy("render", pool="gpu")
    player.announce("default")
    gpu, hello = (send(client, "POST", "/jobs", {"name": n}).get_json()["id"] for n in ("render", "hello"))
    record = client.get(f"/jobs/{gpu}").get_json()
    assert record["waiting_for"] == "runner"
    assert record["waiting_detail"] == ("no live runner serves pool 'gpu'; start one with `bananas runner --pools gpu`")
    shown = client.get(f"/jobs/{hello}").get_json()
    assert (shown["waiting_for"], shown["waiting_detail"]) == (None, None)
    waits = {pool["name"]: pool["waits_for_runner"] for pool in client.get("/pools").get_json()["pools"]}
    assert waits == {"default": False, "gpu": True}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    [check] = [check for check in ready.get_json()["checks"] if check["name"] == "runners"]
    assert check["status"] == "warning"
    assert "pool 'gpu' with 1 job;" in check["detail"]
    assert "bananas runner --pools gpu" in check["detail"]
    player.announce()
    assert not any(pool["waits_for_runner"] for pool in client.get("/pools").get_json()["pools"])
    assert "runners" not in {check["name"] for check in client.get("/readyz").get_json()["checks"]}


def test_without_any_runner_readiness_names_the_pools_that_wait(client):
    """One warning, not two."""
    send(client, "POST", "/jobs", {"name": "hello"})
    checks = [check for check in client.get("/readyz").get_json()["checks"] if check["name"] == "runners"]
    assert [check["detail"] for check in checks] == [
        "no runner is live: jobs are taken and wait (pool 'default' with 1 job); start one with `bananas runner`"
    ]


def test_a_job_set_aside_says_that_it_waits_for_its_functions_limit(client, player):
    """Pending to the outside; the function tells how many run and wait; once there is room, nothing is told."""
    player.deploy("one", max_concurrency=1)
    player.announce()
    ids = [send(client, "POST", "/jobs", {"name": "one"}).get_json()["id"] for _ in range(3)]
    first = player.claim()
    assert player.queue.step("player", 30_000, [], [("default", 5)]).claims == []
    record = client.get(f"/jobs/{ids[1]}").get_json()
    assert (record["status"], record["waiting_for"]) == ("pending", "max_concurrency")
    assert "'one' runs as many jobs as its max_concurrency" in record["waiting_detail"]
    shown = client.get("/functions/one").get_json()
    assert (shown["spec"]["max_concurrency"], shown["running"], shown["parked"]) == (1, 1, 2)
    listed = {f["name"]: (f["running"], f["parked"]) for f in client.get("/functions").get_json()["functions"]}
    assert listed == {"hello": (0, 0), "one": (1, 2)}
    player.settle(first)
    assert client.get(f"/jobs/{ids[1]}").get_json()["waiting_for"] is None


def test_progress_is_in_the_record(client, player):
    """As the handler told it last."""
    job = send(client, "POST", "/jobs", {"name": "hello"}).get_json()["id"]
    claim = player.claim()
    assert client.get(f"/jobs/{job}").get_json()["progress"] is None
    assert player.queue.progress("player", [(job, claim.token, b'{"done": 1.50}')]) == [True]
    assert b'"progress":{"done": 1.50}' in client.get(f"/jobs/{job}").data


def test_a_pools_limit_and_weights_are_shown(client):
    """What was put is what is there."""
    spec = {"max_concurrency": 3, "weights": {"high": 2, "normal": 2, "low": 1}}
    send(client, "PUT", "/pools/gpu", spec)
    shown = client.get("/pools").get_json()["pools"][1]["spec"]
    assert (shown["max_concurrency"], shown["weights"]) == (3, spec["weights"])


def test_jobs_taken_are_counted_once_for_each_key(client, player):
    """A duplicate is no new job."""
    for _ in range(3):
        send(client, "POST", "/jobs", {"name": "hello", "unique_key": "k"})
    assert player.queue.counts().counters == {"enqueued:hello": 1}
    assert isinstance(player.queue.enqueue(NewJob("hello", b"1", unique_key="k")), Enqueued)
