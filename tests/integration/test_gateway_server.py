"""A real gateway process: synchronous calls, waits, clients that leave, stops. The runner is played by the test."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from bananas.embedded import EmbeddedRedis
from bananas.job import JobState, NewJob, Outcome
from bananas.settings import LIMITS
from bananas.spec import PoolSpec
from tests.integration.gateway_player import SOON_S, Answer, Player, call
from tests.platform import Platform, until

pytestmark = pytest.mark.redis

#: A wake-up takes about a millisecond, and what wakes nobody 20 s or more; this leaves room for a busy machine.
AT_ONCE_S = 5.0
#: Calls made while connections are lost.
CALLS = 300


@pytest.fixture
def player(platform: Platform, redis_url: str) -> Player:
    """An empty Redis in which ``hello`` is deployed and a runner for the pool ``default`` is live."""
    player = Player(platform.queue, platform.registry)
    player.deploy("hello")
    player.announce("default")
    return player


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """For clients that wait while the test plays the runner."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


def invoke(platform: Platform, body: bytes = b'{"n": 1}', name: str = "hello") -> Answer:
    return call(platform.port, "POST", f"/functions/{name}/invoke", body)


def waiters(player: Player, job_id: str) -> int:
    """Gateway processes that are registered with a job."""
    client = player.registry._redis
    return len((client.hget(f"{{bananas}}:job:{job_id}", "waiters") or b"").split())


# -- synchronous calls ------------------------------------------------------------------------------------------


def test_a_call_returns_the_result_bytes_untouched(platform, player, pool):
    """Payload in, result out, neither re-encoded; id and timings in the headers; one attempt, no retry."""
    answer = pool.submit(invoke, platform, b'{"n": 1.10}')
    claim = player.claim()
    assert (claim.payload, claim.retries.max) == (b'{"n": 1.10}', 0)
    player.settle(claim, result=b'{"n":  1.10}')
    got = answer.result(SOON_S)
    assert (got.status, got.body, got.headers["Content-Type"]) == (200, b'{"n":  1.10}', "application/json")
    assert got.headers["Bananas-Job-Id"] == claim.id
    assert got.headers["Server-Timing"] == (
        'queued;dur=0.5, sandbox;desc="warm";dur=0, init;dur=0, run;dur=3.25, total;dur=4'
    )


def test_a_result_too_large_to_push_is_read_from_the_record(platform, player, pool):
    """Nobody notices the difference."""
    result = json.dumps("x" * (LIMITS.push_bytes + 1)).encode()
    answer = pool.submit(invoke, platform)
    player.settle(player.claim(), result=result)
    assert answer.result(SOON_S).body == result


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (Outcome.ERROR, 500, "handler-error"),
        (Outcome.PERMANENT, 500, "handler-error"),
        (Outcome.OOM, 502, "sandbox-died"),
        (Outcome.CRASHED, 502, "sandbox-died"),
        (Outcome.TIMEOUT, 504, "timeout"),
    ],
)
def test_a_failed_attempt_is_a_problem_with_job_and_outcome(platform, player, pool, outcome, status, code):
    """The handler's own error is in it, and the timings are in the headers."""
    error = {"type": "ValueError", "message": "boom", "traceback": "tb"}
    answer = pool.submit(invoke, platform)
    claim = player.claim()
    player.settle(claim, outcome, error=error)
    got = answer.result(SOON_S)
    assert (got.status, got.headers["Content-Type"]) == (status, "application/problem+json")
    assert (got.json["code"], got.json["detail"], got.json["error"]) == (code, "ValueError: boom", error)
    assert (
        (got.json["job"], got.json["outcome"]) == (claim.id, outcome.value) == (got.headers["Bananas-Job-Id"], outcome)
    )
    assert "run;dur=3.25" in got.headers["Server-Timing"]


def test_without_a_live_runner_the_call_fails_at_once_and_its_job_is_cancelled(platform, player):
    """503 with the pool's name; a runner of another pool does not count."""
    player.registry.put_pool("gpu", PoolSpec())
    player.deploy("render", pool="gpu")
    got = invoke(platform, name="render")
    assert (got.status, got.json["code"], got.json["pool"]) == (503, "no-live-runner", "gpu")
    assert got.headers["Retry-After"] == "2"
    assert player.queue.show(got.json["job"]).state is JobState.CANCELLED
    assert got.took_s < SOON_S


def test_a_call_whose_job_is_cancelled_by_somebody_else_ends(platform, player, pool):
    """An operator's DELETE wakes the caller."""
    answer = pool.submit(invoke, platform)
    claim = player.claim()
    assert call(platform.port, "DELETE", f"/jobs/{claim.id}").status == 200
    assert (answer.result(SOON_S).status, answer.result().json["code"]) == (409, "job-cancelled")


def hang_up(platform: Platform, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", platform.port), timeout=SOON_S)
    connection.sendall(request)
    return connection


def raw_request(path: str, body: bytes = b"{}", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_runner_is_asked_for_output_until_it_tells_some(platform, player):
    """One that is asked in the moment of its claim does not know the attempt yet."""
    job = player.queue.enqueue(NewJob("hello", b"1"))
    claim = player.claim()

    def follows() -> bool:
        return player.queue.pop_inbox("player", 1.0) == ("follow", job.id, str(claim.token))

    with hang_up(platform, raw_request(f"/jobs/{job.id}/logs?follow=1", b"", "GET")):
        for _ in range(2):
            until(follows, SOON_S, "the runner to be asked")
        player.settle(claim)


def test_a_client_that_hangs_up_takes_its_job_with_it(platform, player):
    """Queued or running: the job is cancelled, and the runner is told to end the attempt."""
    connection = hang_up(platform, raw_request("/functions/hello/invoke"))
    claim = player.claim()
    connection.close()
    assert player.queue.pop_inbox("player", 5.0)[:3] == ("cancel", claim.id, str(claim.token))
    assert player.queue.show(claim.id).state is JobState.CANCELLED


def test_the_next_request_sent_early_is_answered_after_the_first(platform, player):
    """Pipelined bytes are no hang-up and are not lost."""
    with hang_up(platform, raw_request("/functions/hello/invoke") + raw_request("/healthz", b"", "GET")) as connection:
        player.settle(player.claim(), result=b'"first"')
        received = b""
        while b'{"status":"ok"}' not in received:
            received += connection.recv(65536)
    assert received.index(b'"first"') < received.index(b'{"status":"ok"}')
    assert received.count(b"HTTP/1.1 200 OK") == 2


# -- waiting for a job ------------------------------------------------------------------------------------------


def test_a_wait_wakes_at_once_and_so_do_all_who_wait(platform, player, pool):
    """Milliseconds after the job is over, for every client."""
    job = player.queue.enqueue(NewJob("hello", b"1"))
    path = f"/jobs/{job.id}?wait=20"

    def wait() -> tuple[Answer, float]:
        return call(platform.port, "GET", path), time.monotonic()

    answers = [pool.submit(wait) for _ in range(5)]
    claim = player.claim()
    until(lambda: waiters(player, job.id) == 1, SOON_S, "the gateway to wait")
    for answer in answers:
        assert not answer.done()
    settled_s = time.monotonic()
    player.settle(claim, result=b'"done"')
    for answer in answers:
        got, at_s = answer.result(SOON_S)
        assert (got.json["status"], got.json["result"]) == ("completed", "done")
        assert at_s - settled_s < AT_ONCE_S


def test_a_wait_for_a_job_that_is_over_returns_at_once(platform, player):
    """There is nothing to wait for, nor for a job that never was."""
    job = player.queue.enqueue(NewJob("hello", b"1"))
    player.settle(player.claim(), result=b"2")
    got = call(platform.port, "GET", f"/jobs/{job.id}?wait=20")
    assert (got.json["result"], got.took_s < AT_ONCE_S) == (2, True)
    unknown = call(platform.port, "GET", "/jobs/01a20c00-0000-7000-8000-000000000000?wait=20")
    assert (unknown.status, unknown.took_s < AT_ONCE_S) == (404, True)


def test_a_wait_ends_after_its_time_with_the_record_as_it_is(platform, player):
    """Also for a job that waits for a retry: only the end of the job ends a wait early."""
    job = player.queue.enqueue(NewJob("hello", b"1"))
    player.settle(player.claim(), Outcome.ERROR, error={"type": "E", "message": "m"})
    got = call(platform.port, "GET", f"/jobs/{job.id}?wait=0.3")
    assert (got.status, got.json["status"], got.json["attempts"]) == (200, "scheduled", 1)
    assert 0.3 <= got.took_s < SOON_S


def test_a_client_that_leaves_a_wait_does_not_cancel_the_job(platform, player):
    """It only looked."""
    job = player.queue.enqueue(NewJob("hello", b"1"))
    connection = hang_up(platform, raw_request(f"/jobs/{job.id}?wait=20", b"", "GET"))
    until(lambda: waiters(player, job.id) == 1, SOON_S, "the gateway to wait")
    connection.close()
    player.settle(player.claim())
    assert player.queue.show(job.id).state is JobState.COMPLETED


def test_a_body_that_breaks_http_is_a_problem_of_the_client(platform):
    """Chunks that are none: 400, and the gateway lives on."""
    head = raw_request("/jobs", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with hang_up(platform, head + b"zz\r\nno chunk\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert call(platform.port, "GET", "/healthz").status == 200


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /jobs?function=" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "uri-too-long"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, "headers-too-large"),
        (b"nonsense\r\n\r\n", 400, "request"),
    ],
)
def test_what_is_no_request_gets_a_problem_too(platform, sent, status, code):
    """With an id, like every refusal; then the connection ends."""
    with hang_up(platform, sent) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/problem+json\r\n" in head
    assert re.search(rb"X-Request-Id: [0-9a-f]{16}\r\n", head)
    assert (json.loads(body)["code"], json.loads(body)["status"]) == (code, status)
    assert call(platform.port, "GET", "/healthz").status == 200


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_large_body_gets_its_413_also_from_a_real_server(platform, connection):
    """The client is not merely cut off while it still sends, also where its connection ends with the answer."""
    body = b'"' + b"x" * 20_000_000 + b'"'
    got = call(platform.port, "POST", "/functions/hello/invoke", body, Connection=connection)
    assert (got.status, got.json["size_bytes"]) == (413, 20_000_002)


# -- Redis going away -------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Platform, EmbeddedRedis, Player]]:
    """A gateway of two processes over a Redis that the test may stop; a parameter is its grace in seconds."""
    grace_s = getattr(request, "param", 5)
    with (
        EmbeddedRedis(tmp_path / "redis") as server,
        Platform(server.url, BANANAS_GATEWAY_WORKERS="2", BANANAS_GRACE_S=str(grace_s)) as platform,
    ):
        player = Player(platform.queue, platform.registry)
        player.deploy("hello")
        player.announce()
        platform.gateway()
        yield platform, server, player


def test_waiters_survive_a_restart_of_redis(own, pool):
    """Long polls and calls that wait through the outage get their answers after it, from either process."""
    platform, server, player = own
    jobs = [player.queue.enqueue(NewJob("hello", str(n).encode())) for n in range(6)]
    polls = [pool.submit(call, platform.port, "GET", f"/jobs/{job.id}?wait=50", timeout_s=60) for job in jobs]
    sync = pool.submit(invoke, platform, b'"sync"')
    claims = [player.claim() for _ in range(7)]
    for job in jobs:
        until(lambda job=job: waiters(player, job.id) == 1, SOON_S, "the gateway to wait")
    # Everything is on disk once the server has ended in order.
    server.stop()
    assert call(platform.port, "POST", "/jobs", b'{"name":"hello"}').status == 503
    server.start()
    for claim in claims:
        player.settle(claim, result=claim.payload)
    for n, poll in enumerate(polls):
        assert poll.result(SOON_S).json["result"] == n
    assert (sync.result(SOON_S).status, sync.result().body) == (200, b'"sync"')
    assert call(platform.port, "POST", "/jobs", b'{"name":"hello"}').status == 202


def test_a_job_that_ended_while_the_gateway_could_not_hear_is_not_waited_for(own, pool):
    """The reply goes to the connection that was lost; asking again finds the end of the job."""
    platform, _, player = own
    job = player.queue.enqueue(NewJob("hello", b"1"))
    poll = pool.submit(call, platform.port, "GET", f"/jobs/{job.id}?wait=50", timeout_s=60)
    claim = player.claim()
    until(lambda: waiters(player, job.id) == 1, SOON_S, "the gateway to wait")
    client = redis.Redis.from_url(platform.redis_url)
    [reader] = [c for c in client.client_list() if c["cmd"].startswith(("blmpop", "blpop"))]
    # One transaction: nobody reads the list between the end of the job and the loss of its reply.
    pipe = client.pipeline(transaction=True)
    pipe.hset(f"{{bananas}}:job:{job.id}", mapping={"state": "completed", "result": '"lost and found"'})
    pipe.client_kill_filter(_id=reader["id"])
    pipe.execute()
    client.close()
    got = poll.result(SOON_S)
    assert (got.json["result"], got.status) == ("lost and found", 200)
    assert claim.id == job.id


def test_no_call_is_lost_while_the_reader_keeps_losing_its_connection(own, pool):
    """Replies that vanish with a connection, and calls that register just then, are found again within moments."""
    platform, _, player = own
    client = redis.Redis.from_url(platform.redis_url)

    def answer_all() -> None:
        for _ in range(CALLS):
            claim = player.claim()
            player.settle(claim, result=claim.payload)

    runner = pool.submit(answer_all)  # before the calls, which take all other threads
    answers = [pool.submit(invoke, platform, str(n).encode()) for n in range(CALLS)]
    losses = 0
    while not runner.done():
        losses += kill_readers(client)
    client.close()
    runner.result(SOON_S)
    for n, got in enumerate(answer.result(SOON_S) for answer in answers):
        assert (got.status, got.body) == (200, str(n).encode())
        assert got.took_s < SOON_S
    assert losses > 2


def kill_readers(client: redis.Redis) -> int:
    """End the connections on which gateway processes wait for replies; returns how many."""
    readers = [c for c in client.client_list() if c["cmd"].startswith(("blmpop", "blpop"))]
    return sum(client.client_kill_filter(_id=reader["id"]) for reader in readers)


def test_two_processes_tell_the_same_metrics(own):
    """They are read from Redis, not counted by a process."""
    platform, _, player = own
    for _ in range(5):
        assert call(platform.port, "POST", "/jobs", b'{"name":"hello"}').status == 202
    player.settle(player.claim())
    pids = worker_pids(platform)
    assert len(pids) == 2
    seen = {}
    # One process stands still while the other is asked, so both are asked for certain.
    for silent in pids:
        os.kill(silent, signal.SIGSTOP)
        try:
            got = call(platform.port, "GET", "/metrics", timeout_s=SOON_S)
        finally:
            os.kill(silent, signal.SIGCONT)
        # What passes with time, and the questions themselves, differ.
        seen[silent] = re.sub(rb"(?m)^bananas_(queue_oldest_seconds|redis_\w+|http_\w+)\b.*\n", b"", got.body)
    assert len(set(seen.values())) == 1
    assert b'bananas_jobs_accepted_total{function="hello"} 5.0' in got.body


def worker_pids(platform: Platform) -> list[int]:
    master = platform.processes[0].popen.pid
    return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]


# -- stopping and starting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [60], indirect=True)
def test_a_stop_finishes_calls_in_flight_and_does_not_wait_for_idle_connections(own, pool):
    """SIGTERM: long polls are answered with what is known, calls with their results; then the exit code is 0."""
    platform, _, player = own
    idle = http.client.HTTPConnection("127.0.0.1", platform.port, timeout=SOON_S)
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    other = player.queue.enqueue(NewJob("hello", b"1", delay_ms=60_000))
    poll = pool.submit(call, platform.port, "GET", f"/jobs/{other.id}?wait=50", timeout_s=60)
    until(lambda: waiters(player, other.id) == 1, SOON_S, "the gateway to wait")
    sync = pool.submit(invoke, platform)
    claim = player.claim()
    [gateway] = platform.processes
    gateway.popen.send_signal(signal.SIGTERM)
    assert poll.result(SOON_S).json["status"] == "scheduled"
    assert not sync.done()
    player.settle(claim, result=b'"in time"')
    assert sync.result(SOON_S).body == b'"in time"'
    # The grace is 60 s and the idle connection's keep-alive 75 s; a worker looks once in a second.
    assert gateway.popen.wait(SOON_S) == 0
    idle.close()


def test_a_call_that_outlasts_the_grace_is_told_and_its_job_cancelled(own, pool):
    """No caller is left with a cut connection."""
    platform, _, player = own
    sync = pool.submit(invoke, platform)
    claim = player.claim()
    [gateway] = platform.processes
    gateway.popen.send_signal(signal.SIGTERM)
    got = sync.result(SOON_S)
    assert (got.status, got.json["code"], got.json["job"]) == (503, "unavailable", claim.id)
    assert player.queue.show(claim.id).state is JobState.CANCELLED
    assert gateway.popen.wait(SOON_S) == 0


def test_the_start_says_where_and_nothing_else(platform):
    """One line, so that a person and a supervisor both know."""
    [gateway] = platform.processes
    assert gateway.text.splitlines()[0] == f"gateway listening on {platform.url} (1 process)"
